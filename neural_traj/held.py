"""Labels of frames that nothing follows: the last of a shot, which no pair of frames can show the action of.

A table with a row for each frame has them, so that every frame has its time and a value; each says that it is no answer
of the model. What other frames are told is left to `framewise`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from idm.groups import ActionGroup
from pyramid.actions.rotations import from_quaternion, to_quaternion
from pyramid.labels.protocol import FLAG_HELD, FLAG_SHORT
from pyramid.shards.frames import cuts_of
from pyramid.shards.reader import Sample

__all__ = ["with_held"]

_CHANGES = ("delta", "velocity")


def with_held(table: pa.Table, sample: Sample, groups: Sequence[ActionGroup]) -> pa.Table:
    """Adds a row for the last frame of each shot whose frame before has one.

    A value is held, a change is none, ``gap_s`` is that of the row before, ``n_votes`` is 0, and
    ``flags`` have `FLAG_HELD`. Changes of rotation written as quaternions get no row: nobody says their order.

    Args:
        table: labels of one clip at its frames, in order.
        sample: the clip.
        groups: what the dimensions mean; where nothing is declared, values are held.
    """
    if any(group.kind == "quaternion" and group.meaning in _CHANGES for group in groups):
        return table
    places = {frame: place for place, frame in enumerate(table["frame"].to_pylist())}
    ends = [*(cut - 1 for cut in cuts_of(sample)), len(sample) - 1]
    last = [end for end in ends if end not in places and end - 1 in places]
    if not last:
        return table
    before = table.take([places[end - 1] for end in last])
    action = np.asarray(before["action"].to_pylist(), np.float64)
    new = {
        "t_s": sample.times_s[last],
        "frame": last,
        "flags": before["flags"].to_numpy() | FLAG_HELD | FLAG_SHORT,
        "action": list(_none(action, groups).astype(np.float32)),
        "n_votes": [0] * len(last),
    }
    for name in set(new) & set(table.column_names):
        at = table.schema.get_field_index(name)
        before = before.set_column(at, table.schema.field(at), pa.array(new[name], table.schema.field(at).type))
    return pa.concat_tables([table, before]).sort_by("frame")


def _none(action: NDArray[np.float64], groups: Sequence[ActionGroup]) -> NDArray[np.float64]:
    """Returns actions with changes replaced by no change; switches stay where they are."""
    action = action.copy()
    for group in groups:
        if group.meaning in _CHANGES and group.kind != "binary":
            still = to_quaternion(np.zeros((1, 3)), "axis_angle")
            action[:, group.span] = 0 if group.kind == "linear" else from_quaternion(still, group.kind)[0]
    return action
