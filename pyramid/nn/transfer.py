"""Moving batches to a device, and how many rows a pass there has.

Which batches is left to the models.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_device", "pass_rows"]

_ROWS = {"cpu": 16}
"""Fewer on a processor: a row costs the same from 8 on, and the last pass of a batch is filled up with less."""
_MOST_ROWS = 32


def pass_rows(device: torch.device) -> int:
    """Returns how many rows every pass of a labelling network has: kernels may round differently for another shape."""
    return _ROWS.get(device.type, _MOST_ROWS)


def on_device(batch: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device; to a GPU it goes from pinned memory while the processor works on.

    Args:
        batch: any tensor; whole bytes (uint8 pixels) move four times faster than the floats made of them.
        device: where it is needed.
    """
    if device.type != "cuda" or batch.device.type != "cpu":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)
