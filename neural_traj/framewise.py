"""One pseudo-action for each frame of a clip, out of labels that come at the steps of an inverse dynamics model.

What an action is at another rate is left to `idm.resampling`; the labels themselves stay as they are, in their own run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from idm.groups import ActionGroup, groups_from
from idm.resampling import Stretch, at_frames, stretches
from neural_traj.held import with_held
from pyramid import files, parquet
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Quarantined, Unit, run_job
from pyramid.labels.protocol import FLAG_SHORT
from pyramid.labels.table import LabelRun
from pyramid.shards.frames import cuts_of
from pyramid.shards.layout import table_name
from pyramid.shards.reader import Sample, ShardSet

Meaning = Literal["declared", "value", "delta", "velocity"]
FORMAT_VERSION = 2
_SAME_S = 1e-3
_COLUMNS = ("action", "action_std")


def label_frames(
    folder: str, run: str, out: str, *, meaning: Meaning = "declared", workers: int = 1, resume: bool = True
) -> JobReport:
    """Writes a label run with a row for each frame.

    Rows that stand at the frames already are kept as they are. Those past the last step of the model, for less than one
    step, hold the last one and bear `FLAG_SHORT`; the last frame of a shot, see `held`, bears `FLAG_HELD`.

    Args:
        folder: the shard folder.
        run: folder of a run with the columns ``action`` and ``action_std``.
        out: folder of the new run.
        meaning: what actions mean where the model does not declare it.
        workers: processes; the tables do not depend on it.
        resume: keep tables that are done.

    Returns:
        Clips set aside: ``undeclared`` (a meaning is needed and nobody gave it).
    """
    shards = ShardSet.open(folder)
    opened = LabelRun.open(run, shards)
    common = {"folder": folder, "run": run, "out": out, "meaning": meaning}
    made_of = [FORMAT_VERSION, meaning, opened.metadata.get("labeler_digest", "")]
    units = [
        Unit(
            name=shard.removesuffix(".tar"),
            digest=files.digest([*made_of, shards.shard_digest(shard), files.sha256_file(_path(run, shard))]),
            task={**common, "shard": shard},
            amount=sum(shards.rows[i]["frames"] for i in shards.of_shard(shard)),
        )
        for shard in shards.shards
    ]
    return run_job(units, write_frames, folder=out, label="label frames", workers=workers, resume=resume)


def _path(run: str, shard: str) -> str:
    return files.join(run, table_name(shard))


def write_frames(task: Mapping[str, Any]) -> Outcome:
    """Writes the table of one shard; runs in a worker."""
    shards, shard = ShardSet.open(task["folder"]), task["shard"]
    table, metadata = parquet.read(_path(task["run"], shard)), parquet.metadata(_path(task["run"], shard))
    groups = declared_groups(metadata, task["meaning"])
    found, aside = [], []
    keys = table["key"].to_pylist()
    for sample in shards.iter_shard(shard):
        rows = [place for place, key in enumerate(keys) if key == sample.key]
        if not rows:
            continue
        try:
            body = groups.get(str(sample.meta.get("embodiment", "")), [])
            found.append(with_held(frame_rows(table.take(rows), sample, body), sample, body))
        except SkipItemError as error:
            aside.append(Quarantined(item=sample.key, reason=error.reason, detail=error.detail))
    whole = pa.concat_tables(found) if found else table.schema.empty_table()
    told = _told(metadata, task["meaning"], groups)
    parquet.write(_path(task["out"], shard), whole.replace_schema_metadata(None).combine_chunks(), told)
    facts = {"clips": len(found), "rows": len(whole)}
    return Outcome(facts=facts, output=table_name(shard), quarantined=tuple(aside))


def declared_groups(metadata: Mapping[str, Any], meaning: str) -> dict[str, list[ActionGroup]]:
    """Returns the action groups of each embodiment that a run's metadata tells of; ``meaning`` fills what is open."""
    told = metadata.get("config", {}).get("groups", {})
    found = {str(name): groups_from(groups) for name, groups in told.items()}
    if meaning == "declared":
        return found
    given = cast('Literal["value", "delta", "velocity"]', meaning)
    return {
        name: [group if group.meaning else replace(group, meaning=given) for group in groups]
        for name, groups in found.items()
    }


def _told(metadata: Mapping[str, Any], meaning: str, groups: Mapping[str, Sequence[ActionGroup]]) -> dict[str, Any]:
    digest = files.digest([metadata.get("labeler_digest", ""), "frames", FORMAT_VERSION, meaning])
    written = {name: [group.to_dict() for group in own] for name, own in groups.items()}
    config = {**metadata.get("config", {}), "groups": written}
    return {**metadata, "config": config, "labeler_digest": digest, "rows": "one for each frame"}


def frame_rows(table: pa.Table, sample: Sample, groups: Sequence[ActionGroup]) -> pa.Table:
    """Returns the labels of one clip, a row for each frame that another one follows in its shot.

    Args:
        table: its labels, in order of time.
        sample: the clip.
        groups: what the dimensions mean.

    Raises:
        SkipItemError: ``undeclared``: steps that are no frames, and nothing says what actions mean; ``bad_labels``.
    """
    t_s, gap_s = table["t_s"].to_numpy(), table["gap_s"].to_numpy()
    wanted = _wanted(sample)
    if _stand_at_frames(t_s, gap_s, sample.times_s, wanted):
        return table
    _check(table, sample, groups, t_s, gap_s)
    pieces = []
    left = set(wanted)
    for stretch in stretches(t_s, gap_s):
        for frames in _runs(_reached(stretch, sample, left)):
            pieces.append(_resampled(table, stretch, sample, frames, groups))
            left -= set(frames)
    whole = pa.concat_tables(pieces) if pieces else table.slice(0, 0)
    return whole.sort_by("frame")


def _wanted(sample: Sample) -> list[int]:
    """Returns the frames that another frame of their shot follows."""
    cuts = set(cuts_of(sample))
    return [frame for frame in range(len(sample) - 1) if frame + 1 not in cuts]


def _stand_at_frames(
    t_s: NDArray[np.float64], gap_s: NDArray[np.float32], times_s: NDArray[np.float64], wanted: Sequence[int]
) -> bool:
    """Whether every step begins at a frame and ends at the next: then there is nothing to resample."""
    nearest = np.clip(np.searchsorted(times_s, t_s - _SAME_S), 0, len(times_s) - 1)
    following = np.minimum(nearest + 1, len(times_s) - 1)
    begin = np.abs(times_s[nearest] - t_s) < _SAME_S
    end = np.abs(times_s[following] - t_s - gap_s) < _SAME_S
    return bool((begin & end).all()) and set(nearest.tolist()) <= set(wanted)


def _check(
    table: pa.Table,
    sample: Sample,
    groups: Sequence[ActionGroup],
    t_s: NDArray[np.float64],
    gap_s: NDArray[np.float32],
) -> None:
    if (np.diff(t_s) <= 0).any():
        raise SkipItemError("bad_labels", f"{sample.key}: its labels are not in order of time")
    width = len(table["action"][0].as_py())
    covered = sorted(place for group in groups for place in range(group.start, group.end))
    if covered == list(range(width)) and all(group.meaning for group in groups):
        return
    own, clip = 1 / float(np.median(gap_s)), 1 / float(np.median(np.diff(sample.times_s)))
    raise SkipItemError(
        "undeclared",
        f"{sample.key}: its labels come at {own:.4g} Hz, its frames at {clip:.4g} Hz, and nothing says whether its "
        f"{width} action dimensions are values or changes, which decides what they are at {clip:.4g} Hz; train the "
        "inverse dynamics model with --modality, or say --actions value, delta or velocity",
    )


def _reached(stretch: Stretch, sample: Sample, left: set[int]) -> list[int]:
    """Returns the frames of a stretch's shot that it tells of: its own, and those less than a step beyond its ends."""
    step = float(np.median(np.diff(stretch.edges_s)))
    first, last = stretch.edges_s[0], stretch.edges_s[-1]
    times, cuts = sample.times_s, cuts_of(sample)
    inside = int(np.searchsorted(times, first + _SAME_S, "right")) - 1
    shot = int(np.searchsorted(cuts, inside, "right")) if cuts else 0
    begin, end = [0, *cuts, len(times)][shot : shot + 2]
    return [
        frame
        for frame in range(begin, end - 1)
        if frame in left and first - step + _SAME_S < times[frame] and times[frame] < last + step - _SAME_S
    ]


def _runs(frames: Sequence[int]) -> list[list[int]]:
    """Splits frames into runs of consecutive ones."""
    runs = itertools.groupby(enumerate(frames), lambda pair: pair[1] - pair[0])
    return [[frame for _, frame in run] for _, run in runs]


def _resampled(
    table: pa.Table, stretch: Stretch, sample: Sample, frames: Sequence[int], groups: Sequence[ActionGroup]
) -> pa.Table:
    own = table.slice(stretch.rows.start, stretch.rows.stop - stretch.rows.start)
    actions, std = (np.asarray(own[name].to_pylist(), np.float64) for name in _COLUMNS)
    times = sample.times_s[[*frames, frames[-1] + 1]]
    try:
        told, spread = at_frames(stretch.edges_s, actions, std, times, groups)
    except ValueError as error:
        raise SkipItemError("undeclared", f"{sample.key}: {error}") from error
    edges = stretch.edges_s
    first = np.clip(np.searchsorted(edges, times[:-1] + _SAME_S, "right") - 1, 0, len(own) - 1)
    last = np.clip(np.searchsorted(edges, times[1:] - _SAME_S, "right") - 1, first, len(own) - 1)
    beyond = (times[:-1] < edges[0] - _SAME_S) | (times[1:] > edges[-1] + _SAME_S)
    columns = {
        "key": [sample.key] * len(frames),
        "t_s": times[:-1],
        "frame": list(frames),
        "gap_s": np.diff(times).astype(np.float32),
        "action": list(told.astype(np.float32)),
        "action_std": list(spread.astype(np.float32)),
        **_joined(own, first.tolist(), last.tolist(), beyond),
    }
    try:
        return pa.table([pa.array(columns[field.name], field.type) for field in own.schema], schema=own.schema)
    except KeyError as error:
        raise DataError(f"labels of {sample.key}: nothing says how the column {error} is resampled") from error


def _joined(own: pa.Table, first: list[int], last: list[int], beyond: NDArray[np.bool_]) -> dict[str, list[Any]]:
    """Joins what the steps that a frame lies in say: all flags, all doubts, the fewest votes."""
    spans = [slice(a, b + 1) for a, b in zip(first, last, strict=True)]
    flags = own["flags"].to_numpy()
    short = np.where(beyond, FLAG_SHORT, 0)
    found: dict[str, list[Any]] = {
        "flags": [int(np.bitwise_or.reduce(flags[s]) | extra) for s, extra in zip(spans, short, strict=True)]
    }
    if "n_votes" in own.column_names:
        votes = own["n_votes"].to_numpy()
        found["n_votes"] = [int(votes[s].min()) for s in spans]
    if "doubt" in own.column_names:
        doubts = [set(filter(None, text.split(","))) for text in own["doubt"].to_pylist()]
        found["doubt"] = [",".join(sorted(set().union(*doubts[s]))) for s in spans]
    return found
