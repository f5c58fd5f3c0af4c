"""Reference vectors of published networks: weights, inputs and outputs in one file, and the check against them.

How a network is built from such weights is left to the model that it belongs to.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyramid import files
from pyramid.errors import DataError, ExitCode, PyramidError

__all__ = ["LIMIT", "Reference", "read_reference", "run_parity"]

LIMIT = 1e-5
"""Errors have to stay below this, in float32."""
_MAX_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Reference:
    """What a published network computed."""

    model: str
    """Its name."""
    config: dict[str, Any]
    """Its configuration, as published."""
    weights: dict[str, Tensor]
    """Parameters by published name."""
    inputs: dict[str, Tensor]
    """Inputs, the random draws (``noise``, ``time``) among them."""
    outputs: dict[str, Tensor]
    """``loss``, ``action_pred``, and intermediate results."""


def read_reference(path: str) -> Reference:
    """Reads a file of reference vectors.

    Raises:
        DataError: no such file, no safetensors file, or without what a reference needs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = files.read_bytes(path, max_bytes=_MAX_BYTES)
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        note = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["json"])
        model, config = str(note["model"]), dict(note["config"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' holds no reference vectors: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {"param": {}, "input": {}, "output": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
    missing = [name for name in ("loss", "action_pred") if name not in parts["output"]]
    if missing or not parts["param"] or not parts["input"]:
        raise DataError(f"'{path}' lacks {', '.join(missing) or 'weights or inputs'}")
    return Reference(model, config, parts["param"], parts["input"], parts["output"])


def run_parity(command: str, paths: Sequence[str], measure: Callable[[Reference], tuple[float, float]]) -> int:
    """Checks files one by one and prints a JSON line for each; returns the exit code.

    Args:
        command: name for messages.
        paths: files of reference vectors.
        measure: returns the error of the loss and of the actions.
    """
    if not paths or any(path.startswith("-") for path in paths):
        print(f"usage: python -m {command} FILE.safetensors ...", file=sys.stderr)
        return int(ExitCode.USAGE)
    good = True
    for path in paths:
        try:
            reference = read_reference(path)
            loss, action = measure(reference)
        except (PyramidError, KeyError, RuntimeError) as error:
            print(f"{command}: {path}: {' '.join(str(error).split())}", file=sys.stderr)
            good = False
            continue
        line = {"file": path, "model": reference.model, "loss_abs_error": loss, "action_max_abs_error": action}
        print(json.dumps(line))
        good = good and all(math.isfinite(e) and e < LIMIT for e in (loss, action))
    return int(ExitCode.DONE if good else ExitCode.FAILED)
