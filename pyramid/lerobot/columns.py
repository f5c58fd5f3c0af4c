"""Columns of LeRobot's tables as arrays of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def numbers(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """Returns a column of numbers, truth values or equally long vectors as [T] or [T, D]; None for anything else."""
    array = column.combine_chunks()
    nested = (
        pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    )
    flat = array.flatten() if nested else array
    kind = flat.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    if array.null_count or flat.null_count or len(flat) % max(len(array), 1):
        return None
    if nested and len(set(pc.list_value_length(array).to_pylist())) != 1:
        return None
    values = np.asarray(flat.to_numpy(zero_copy_only=False))
    return values.reshape(len(array), -1) if nested else values
