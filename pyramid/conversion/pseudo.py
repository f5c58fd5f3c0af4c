"""Columns that clips without measured actions need to be read as robot episodes: actions, states, facts of the clip.

Nothing here is passed off as measured: what is inferred says so in a column beside it, what is not known is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.conversion.labels import LabelColumn
from pyramid.conversion.origin import Origin
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import Quarantined
from pyramid.labels.protocol import FLAG_HELD
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY
from pyramid.shards.reader import ShardSet

PSEUDO, FLAGS = "pseudo_action", "pseudo_action_flags"
VALID, ACTION_SOURCE, STATE_SOURCE = "action_valid", "action_source", "state_source"
_NO_TURN = ("linear", "axis_angle", "euler_angles_rpy")
_CHANGES = ("delta", "velocity")


def with_columns(src: str, origin: Origin, *, actions: str, states: str, facts: str) -> Origin:
    """Tells the episodes of a shard folder which columns they get beside their own.

    Args:
        src: the shard folder.
        origin: its episodes.
        actions: ``measured`` or ``pseudo``.
        states: ``measured`` or ``previous_action``.
        facts: table with a row per clip; empty for none.

    Raises:
        ConfigError: pseudo-actions are asked for, and no label run gives any.
        DataError: a table of facts without a row per clip.
    """
    if actions == "measured" and not facts:
        return origin
    column = next((one for one in origin.labels if one.name == PSEUDO), None)
    if actions == "pseudo" and column is None:
        raise ConfigError(f"'{src}': actions: pseudo needs a label run with pseudo-actions; name it with --labels")
    known, shards = _facts(facts) if facts else {}, ShardSet.open(src)
    episodes, refused = [], list(origin.refused)
    for task in origin.episodes:
        row = shards.rows[task["row"]]
        added: dict[str, Any] = {"facts": known.get(row["key"])} if facts else {}
        if facts and added["facts"] is None:
            detail = f"clip {row['key']} has no row in '{facts}'"
            refused.append(Quarantined(item=row["key"], reason="no_facts", detail=detail))
            continue
        if actions == "pseudo" and column is not None:
            if row["action_dim"]:
                detail = f"clip {row['key']} has measured actions, which a pseudo-action never replaces"
                refused.append(Quarantined(item=row["key"], reason="measured_actions", detail=detail))
                continue
            changes, labeler = _about(column, row["embodiment"], shards.shards[0])
            source = f"pseudo:{labeler}:{column.labels[:12]}"
            added |= {"changes": changes, "states": states, "source": source}
        content = files.digest([task["content"], added])
        episodes.append({**task, "added": added, "content": content})
    return replace(origin, episodes=tuple(episodes), refused=tuple(refused))


def _about(column: LabelColumn, embodiment: str, shard: str) -> tuple[list[int], str]:
    """Returns the dimensions in which 0 means that nothing moves, and the name of the labeler."""
    metadata = parquet.metadata(files.join(column.run, shard.replace(".tar", ".parquet")))
    config = metadata.get("config")
    groups = config.get("groups", {}).get(embodiment, []) if isinstance(config, Mapping) else []
    changes = [g for g in groups if g.get("meaning") in _CHANGES and g.get("kind") in _NO_TURN]
    places = [place for group in changes for place in range(group["start"], group["end"]) if place < column.dim]
    return places, str(metadata.get("labeler", "unknown"))


@lru_cache(maxsize=2)
def _facts(path: str) -> dict[str, dict[str, Any]]:
    table = parquet.read(path)
    kinds = [pa.types.is_string, pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean]
    odd = [field.name for field in table.schema if not any(kind(field.type) for kind in kinds)]
    if "key" not in table.column_names or odd:
        raise DataError(f"'{path}': facts are a column 'key' and plain texts, numbers or truth values; not {odd}")
    names = [name for name in table.column_names if name != "key"]
    types = {name: str(table.schema.field(name).type) for name in names}
    return {row["key"]: {name: [types[name], row[name]] for name in names} for row in table.to_pylist()}


def vectors(values: NDArray[Any]) -> pa.Array:
    """Returns [T, D] as a column of float32; plain numbers for D = 1, as LeRobot's readers want them."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def added_columns(columns: Mapping[str, pa.Array], n: int, added: Mapping[str, Any]) -> dict[str, pa.Array]:
    """Returns the columns that `with_columns` promised of one episode.

    Args:
        columns: its own columns, labels among them.
        n: frames.
        added: what `with_columns` noted.

    Raises:
        SkipItemError: ``no_labels``: the clip has no pseudo-action at all.
    """
    found: dict[str, pa.Array] = {}
    if "source" in added:
        found |= _actions(columns, n, added)
    for name, (kind, value) in (added.get("facts") or {}).items():
        missing = "" if kind == "string" else np.nan if kind in ("double", "float") else 0
        found[name] = pa.array([missing if value is None else value] * n, pa.type_for_alias(kind))
    return found


def _actions(columns: Mapping[str, pa.Array], n: int, added: Mapping[str, Any]) -> dict[str, pa.Array]:
    column = columns[PSEUDO]
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    told = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(n, -1)
    filled = np.isfinite(told).all(1)
    flags = np.nan_to_num(columns[FLAGS].to_numpy(zero_copy_only=False)).astype(np.int64)
    valid = filled & ((flags & FLAG_HELD) == 0)
    if not valid.any():
        raise SkipItemError("no_labels", "no frame of the clip has a pseudo-action")
    last = np.maximum.accumulate(np.where(filled, np.arange(n), -1))
    action = told[np.where(last < 0, int(np.argmax(filled)), last)]
    action[np.ix_(~filled, added["changes"])] = 0
    found = {
        ACTION_KEY: vectors(action),
        VALID: pa.array(valid),
        ACTION_SOURCE: pa.array([added["source"]] * n),
        STATE_SOURCE: pa.array(["absent" if added["states"] == "measured" else "inferred:previous_action"] * n),
    }
    if added["states"] == "previous_action":
        found[STATE_KEY] = vectors(np.concatenate([action[:1], action[:-1]]))
    return found
