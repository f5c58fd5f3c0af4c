"""Statistics of every embodiment, in one pass over its sources, kept under a digest of all they depend on.

How rows are summed up is left to `pyramid.mixture.sketch`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.actions import ChunkCodec
from pyramid.actions.chunks import Column
from pyramid.config import to_dict
from pyramid.errors import DataError
from pyramid.mixture.bodies import whole_body
from pyramid.mixture.cache import cached_json
from pyramid.mixture.sketch import ACCURACY, Summary
from pyramid.mixture.source import Source
from pyramid.normalize import Normalizer, NormalizerKind, is_spread, make_normalizer
from pyramid.shards.ahead import ReadAhead
from pyramid.types import Embodiment

_LOG = logging.getLogger("pyramid.mixture")
_FORMAT = 2
_ROWS = 65_536
_CHUNKS = 256
"""Chunks that are encoded at a time."""

Rows = dict[str, NDArray[np.float32]]


def source_statistics(source: Source, *, relative: bool = False) -> dict[str, Summary]:
    """Sums up a source's rows in one pass, or takes them from the cache if it knows them.

    Args:
        source: an open source.
        relative: also what actions are less the state at the chunk's start, of a body that is not declared so.

    Returns:
        ``action`` and, where there is one, ``state``, as on disk; and where a body is declared with delta or relative
        actions (or ``relative``) their encoded dimensions for each step of a chunk: ``action_0``, ``action_1``, ...

    Raises:
        DataError: no row of finite numbers, or relative actions of a source whose states and actions differ in size.
    """
    body = source.embodiment
    codec = body.codec if body.codec is not None and len(body.codec.by_step) else None
    if relative and codec is None:
        codec = ChunkCodec(whole_body(body).with_actions("relative"))
    written = to_dict(codec.spec) if codec else None
    # Statistics are of rows: a history of states is made of the same ones.
    alone = replace(body, state_history=1, state_gap_s=0.0).to_dict()
    digest = files.digest([_FORMAT, ACCURACY, source.digest, source.spec.use, alone, written])

    def make() -> dict[str, object]:
        return {name: summary.to_dict() for name, summary in _collect(source, codec).items()}

    return {name: Summary.from_dict(data) for name, data in cached_json("statistics", digest, make).items()}


def _collect(source: Source, codec: ChunkCodec | None) -> dict[str, Summary]:
    found: dict[str, Summary] = {}
    waiting: dict[str, list[NDArray[np.float32]]] = {}
    n = 0

    def flush() -> None:
        for name, parts in waiting.items():
            new = Summary.of(np.concatenate(parts))
            found[name] = found[name].merged(new) if name in found else new
        waiting.clear()

    for rows in _rows(source):
        for name, values in (*rows.items(), *(_by_step(rows, source.embodiment.horizon, codec) if codec else ())):
            waiting.setdefault(name, []).append(values)
        n += len(rows["action"]) * (1 + (source.embodiment.horizon if codec else 0))
        if n >= _ROWS:
            flush()
            n = 0
    flush()
    if not found or not all(summary.count for summary in found.values()):
        raise DataError(f"source '{source.name}': it holds no finite actions to take statistics of")
    if codec and "action_0" not in found:
        raise DataError(
            f"source '{source.name}': no chunk of {source.embodiment.horizon} steps holds finite numbers alone"
        )
    return found


def _by_step(rows: Rows, horizon: int, codec: ChunkCodec) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields the values of each step of all chunks of a clip that hold finite numbers alone."""
    action, state = rows["action"], rows["state"]
    n = len(action)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(action).all(1))
    for first in range(0, n, _CHUNKS):
        starts = np.arange(first, min(first + _CHUNKS, n))
        steps = starts[:, None] + np.arange(horizon)
        valid: NDArray[np.bool_] = np.asarray(steps < n)
        steps = np.minimum(steps, n - 1)
        kept = np.flatnonzero(np.isfinite(state[starts]).all(1) & (finite[steps] | ~valid).all(1))
        starts, steps, valid = starts[kept], steps[kept], valid[kept]
        encoded = codec.encode_action(action[steps], state[starts], valid)[..., codec.by_step]
        for step in range(horizon):
            if valid[:, step].any():
                yield f"action_{step}", encoded[valid[:, step], step]


def _rows(source: Source) -> Iterator[Rows]:
    """Yields the rows of each clip; a clip that cannot be read is logged and left out."""
    ahead = ReadAhead()
    for clip in range(len(source.clips)):
        try:
            rows = source.rows(clip, ahead)
        except DataError as error:
            source.check_shard(clip)
            _LOG.warning("statistics go without a clip of source '%s': %s", source.name, error)
            continue
        if rows is not None:
            yield rows


def embodiment_statistics(
    sources: Sequence[Source], shares: Mapping[str, Fraction], *, relative: bool = False
) -> dict[str, dict[str, Summary]]:
    """Merges the statistics of the sources of each embodiment, each weighted by its share of the samples.

    A merged summary counts as many rows as its sources hold together. Videos without actions have none.
    """
    found: dict[str, dict[str, Summary]] = {}
    sources = [source for source in sources if source.embodiment.label != "video"]
    for name in dict.fromkeys(source.embodiment.name for source in sources):
        members = [source for source in sources if source.embodiment.name == name]
        parts = [source_statistics(source, relative=relative) for source in members]
        # The last steps of a chunk may be missing where all clips of a source are short.
        for kind in dict.fromkeys(kind for part in parts for kind in part):
            have = [(source, part[kind]) for source, part in zip(members, parts, strict=True) if kind in part]
            total = float(sum(shares[source.name] for source, _ in have))
            rows = sum(summary.count for _, summary in have)
            for source, summary in have:
                new = summary.scaled(float(shares[source.name]) / total * rows / summary.count)
                known = found.setdefault(name, {})
                known[kind] = known[kind].merged(new) if kind in known else new
    return found


def normalizers(sources: Sequence[Source], shares: Mapping[str, Fraction]) -> dict[str, dict[str, Normalizer]]:
    """Returns the normalisers of every embodiment, of encoded values where it is declared.

    Where nothing else is declared, actions and states are mapped by their 1 % and 99 % quantiles, latent actions to
    zero mean and unit spread. Delta and relative actions have numbers of their own for each step of a chunk.
    """
    body = {source.embodiment.name: source.embodiment for source in sources}
    return {name: _of_body(body[name], kinds) for name, kinds in embodiment_statistics(sources, shares).items()}


def _of_body(body: Embodiment, kinds: Mapping[str, Summary]) -> dict[str, Normalizer]:
    if body.codec is None:
        kind: NormalizerKind = "mean_std" if body.label == "latent" else "q01_q99"
        return {name: make_normalizer(kind, *_bounds(summary, kind)) for name, summary in kinds.items()}
    steps: list[Summary] = []
    if len(body.codec.by_step):
        for step in range(body.horizon):
            steps.append(kinds.get(f"action_{step}") or steps[-1])
    found = {"action": _fitted(body.codec.action_columns, kinds["action"], steps)}
    return found | ({"state": _fitted(body.codec.state_columns, kinds["state"], [])} if "state" in kinds else {})


def _fitted(columns: Sequence[Column], rows: Summary, steps: Sequence[Summary]) -> Normalizer:
    """Puts a normaliser together, dimension by dimension; [T, E] where some dimensions are by step."""
    center, scale = np.zeros((max(len(steps), 1), len(columns))), np.ones((max(len(steps), 1), len(columns)))
    place = np.cumsum([column.by_step for column in columns]) - 1
    for rule in {column.rule for column in columns}:
        whole, each = _bounds(rows, rule), [_bounds(summary, rule) for summary in steps]
        for d, column in enumerate(columns):
            if column.rule == rule and column.by_step:
                center[:, d], scale[:, d] = np.array([[c[place[d]], s[place[d]]] for c, s in each]).T
            elif column.rule == rule and column.row >= 0:
                center[:, d], scale[:, d] = whole[0][column.row], whole[1][column.row]
    made = make_normalizer("mixed", *((center, scale) if steps else (center[0], scale[0])))
    return replace(
        made,
        clip=tuple(column.rule == "q01_q99" for column in columns),
        switches=tuple(d for d, column in enumerate(columns) if column.rule == "binary"),
    )


def _bounds(summary: Summary, rule: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns center and scale [D] by a rule.

    Values that differ in less than 1 % of the rows, such as a grip that hardly ever opens, have no spread between their
    quantiles and yet are not constant: for them ``q01_q99`` takes the least and the greatest value.
    """
    if rule == "identity":
        return np.zeros_like(summary.mean), np.ones_like(summary.mean)
    if rule == "mean_std":
        return summary.mean, summary.std
    low, high = summary.low, summary.high
    if rule == "q01_q99":
        inner = summary.quantile(0.01), summary.quantile(0.99)
        spread = is_spread((inner[0] + inner[1]) / 2, (inner[1] - inner[0]) / 2)
        low, high = np.where(spread, inner[0], low), np.where(spread, inner[1], high)
    return (low + high) / 2, (high - low) / 2
