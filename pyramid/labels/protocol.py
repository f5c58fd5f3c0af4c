"""What a labeler is, and how one is found by name: through the entry-point group ``pyramid.labelers``.

A labeler turns clips into tables; which shards it sees, in what process, and where the tables go is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

import pyarrow as pa

from pyramid.errors import ConfigError, nearest
from pyramid.shards.reader import Sample

ENTRY_POINT_GROUP = "pyramid.labelers"

FLAG_STATIC = 1
"""Bit of ``flags``: the pair of frames shows nothing happening."""
FLAG_SHORT = 2
"""Bit of ``flags``: fewer votes or frames than the labeler wants."""
FLAG_GATED = 4
"""Bit of ``flags``: outside the labeler's own limits of trust."""
FLAG_HELD = 8
"""Bit of ``flags``: no answer of the labeler: no frame follows, a value is held and a change is none."""

BASE_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("key", pa.string()),
    ("t_s", pa.float64()),
    ("frame", pa.int32()),
    ("gap_s", pa.float32()),
    ("flags", pa.uint16()),
)
"""Columns that every label table has."""


Prepare = Callable[[Sample], Any]
"""The first step of a labeler: from a sample to what its network needs, such as small frames."""


@runtime_checkable
class Labeler(Protocol):
    """Anything that labels clips.

    Two things more a labeler may have. ``prepare``, a callable: it takes one `Sample`, may raise `SkipItemError`, and
    returns what `label` gets in the sample's place. It runs where frames are decoded, which with a GPU are other
    processes, so it should be small and hold no weights: a function, or a frozen dataclass with ``__call__``. And
    ``compile()``: hands the networks to ``torch.compile``.
    """

    name: str
    """Such as ``lam``; part of the table's metadata."""

    def digest(self) -> str:
        """Returns the digest of all that decides the labels: weights and config."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Returns what users of the table need: config, gap policy, normaliser, units."""
        ...

    def schema(self) -> pa.Schema:
        """Returns the columns of the table: `BASE_FIELDS` and the labeler's own."""
        ...

    def label(self, clips: Sequence[Any]) -> list[pa.Table]:
        """Returns one table per clip, in the order given, rows in the order of time.

        Clips are what ``prepare`` returned or, without one, samples. A table must depend on its own clip alone. A clip
        that cannot be labelled raises `SkipItemError`; the engine then asks again for each clip by itself.
        """
        ...


def labeler_names() -> list[str]:
    """Returns the names of all installed labelers."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def load_labeler(name: str, model: str, device: str = "cpu") -> Labeler:
    """Loads an installed labeler by name.

    Args:
        name: an entry point of the group ``pyramid.labelers``.
        model: model folder that its loader reads.
        device: a torch device, such as ``cpu`` or ``cuda:0``.

    Raises:
        ConfigError: no such labeler; the installed ones are named.
    """
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        raise ConfigError(f"no labeler '{name}'{nearest(name, found)}; installed: {', '.join(sorted(found)) or 'none'}")
    load = cast("Callable[..., Labeler]", found[name].load())
    return load(model, device=device)
