"""Published weights in safetensors files, whole or in shards with an index, read without running anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pyramid.errors import DataError

__all__ = ["read_text", "read_weights"]

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_text(source: str, name: str, options: Mapping[str, Any]) -> str:
    """Reads a text file of a folder or a Hub repository.

    Raises:
        OSError: it is not there.
    """
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(source, name, **_where(options)))).read_text(encoding="utf-8")


def read_weights(source: str, options: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Reads all weights of a folder or a Hub repository, by published name.

    Args:
        source: folder or repository.
        options: ``revision`` and ``local_files_only``.

    Raises:
        DataError: there are none, a shard is missing or damaged, or holds not what the index says; it is named.
    """
    found = options or {"local_files_only": True}
    index = _optional(source, INDEX, found)
    if index is None:
        return _read(source, WHOLE, found)
    try:
        names = {str(k): str(v) for k, v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"'{source}': {INDEX} is no index of weights ({error}); download it again") from error
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        held = _read(source, shard, found)
        short = sorted(name for name, place in names.items() if place == shard and name not in held)
        if short:
            raise DataError(f"'{source}': {shard} lacks '{short[0]}', which the index says it holds; download it again")
        weights |= {name: tensor for name, tensor in held.items() if names.get(name) == shard}
    return weights


def _read(source: str, name: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    if not re.fullmatch(r"[\w.-]+\.safetensors", name):
        raise DataError(f"'{source}': the index names '{name}', which is no file beside it")
    path = _optional(source, name, options)
    if path is None:
        raise DataError(f"'{source}' is not complete: {name} is missing; download it again")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"'{source}': {name} is damaged or only half there ({error}); download it again") from error


def _optional(source: str, name: str, options: Mapping[str, Any]) -> Path | None:
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **_where(options))
    except OSError as error:
        raise DataError(f"'{source}' cannot be had: {' '.join(str(error).split())}") from error
    return None if path is None else Path(path)


def _where(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("revision", "local_files_only") if name in options}
