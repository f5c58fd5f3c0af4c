"""Model folders: ``config.json`` and ``model.safetensors``, written atomically and read without running anything.

What is in the config is left to each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid import files
from pyramid.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_WEIGHTS_BYTES = 64 * 2**30


def save_model(
    folder: str,
    *,
    kind: str,
    config: Mapping[str, Any],
    module: nn.Module,
    provenance: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Writes a model folder; ``config.json`` comes last and marks it complete. Returns the digest of the weights.

    Args:
        folder: where to write; made if missing.
        kind: ``lam``, ``idm`` or ``vla``; reading checks it.
        config: the model's config as plain data.
        module: its parameters and buffers are saved, every one.
        provenance: see `pyramid.config.provenance`.
        extra: further plain data that labels or policies need, such as normalisers.
    """
    from safetensors.torch import save

    files.make_dirs(folder)
    files.remove(files.join(folder, CONFIG_FILE))
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()})
    files.write_bytes(files.join(folder, WEIGHTS_FILE), data)
    weights = files.sha256_bytes(data)
    files.write_json(
        files.join(folder, CONFIG_FILE),
        {
            "kind": kind,
            "config": dict(config),
            "extra": dict(extra or {}),
            "weights_sha256": weights,
            "provenance": dict(provenance),
        },
    )
    return weights


def load_model_files(folder: str, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads a model folder: the whole of ``config.json`` and the tensors by name.

    Raises:
        DataError: nothing there, another kind of model, or weights that are not the ones the config was written with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = read_model_config(folder, kind)
    data = files.read_bytes(files.join(folder, WEIGHTS_FILE), max_bytes=MAX_WEIGHTS_BYTES)
    if files.sha256_bytes(data) != description["weights_sha256"]:
        raise DataError(f"'{folder}': {WEIGHTS_FILE} is not the one {CONFIG_FILE} was written with; copy it again")
    try:
        return description, load(data)
    except SafetensorError as error:
        raise DataError(f"'{folder}/{WEIGHTS_FILE}' is not a safetensors file: {error}") from error


def read_model_config(folder: str, kind: str) -> dict[str, Any]:
    """Reads and checks the ``config.json`` of a model folder."""
    path = files.join(folder, CONFIG_FILE)
    if not files.exists(path):
        raise DataError(f"no {kind} model in '{folder}' (no {CONFIG_FILE}); train one: pyramid train {kind} ...")
    description = files.read_json(path)
    needed = {"kind", "config", "extra", "weights_sha256"}
    if not isinstance(description, dict) or not needed <= set(description):
        raise DataError(f"'{path}' describes no model of this toolkit")
    if description["kind"] != kind:
        raise DataError(f"'{folder}' holds a model of kind '{description['kind']}', not '{kind}'")
    return description
