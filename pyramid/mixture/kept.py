"""What somebody keeps of the frames of a mixture's samples, to be had in the place of their pictures.

What that is, and where it lies, is left to whoever keeps it; `pyramid.mixture` asks for it before it decodes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pyramid.mixture.source import Source

__all__ = ["Kept", "joined"]


class Kept(Protocol):
    """Rows of tokens that stand for frames; the same frame always has the same."""

    pictures: bool
    """Whether the pictures are needed all the same."""
    dtype: torch.dtype
    """Of the rows."""
    width: int
    """Numbers of a token, C."""

    def rows(self, source: Source, clips: NDArray[np.int64], frames: NDArray[np.int64]) -> list[Tensor | None]:
        """Returns what is kept of frames of a source's clips, [L, C] each with an L of its own; None where nothing."""


def joined(kept: Kept, rows: Mapping[int, Tensor], n: int) -> dict[str, Tensor]:
    """Returns the rows of a group of ``n`` samples, by place, as its ``context`` and ``context_length``."""
    length = torch.tensor([len(rows[at]) if at in rows else 0 for at in range(n)], dtype=torch.int64)
    context = torch.zeros(n, int(length.max()) if n else 0, kept.width, dtype=kept.dtype)
    for at, row in rows.items():
        context[at, : len(row)] = row
    return {"context": context, "context_length": length}


def found(kept: Kept | None, source: Source, clips: NDArray[np.int64], frames: NDArray[np.int64]) -> dict[int, Tensor]:
    """Returns what is kept of frames, by number."""
    rows: Sequence[Tensor | None] = kept.rows(source, clips, frames) if kept is not None else ()
    return {number: row for number, row in enumerate(rows) if row is not None}
