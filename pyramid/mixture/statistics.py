"""Statistics of every embodiment, in one pass over its sources, kept under a digest of all they depend on.

How rows are summed up is left to `pyramid.mixture.sketch`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.cache import cached_json
from pyramid.mixture.sketch import ACCURACY, Summary
from pyramid.mixture.source import Source
from pyramid.normalize import Normalizer, make_normalizer
from pyramid.shards.ahead import ReadAhead

_LOG = logging.getLogger("pyramid.mixture")
_FORMAT = 1
_ROWS = 65_536

Rows = dict[str, NDArray[np.float32]]


def source_statistics(source: Source, *, relative: bool = False) -> dict[str, Summary]:
    """Sums up a source's rows: ``action`` and, where there is one, ``state``; from the cache if it knows them.

    Args:
        source: an open source.
        relative: actions per chunk step, less the state at the chunk's start: ``action_0``, ``action_1``, ...

    Raises:
        ConfigError: relative actions of a source whose states and actions differ in size.
        DataError: no row of finite numbers.
    """
    body = source.embodiment
    if relative and body.state_dim != body.action_dim:
        raise ConfigError(
            f"source '{source.name}': relative actions need states of the same size, "
            f"there are {body.state_dim} and {body.action_dim} dimensions"
        )
    digest = files.digest([_FORMAT, ACCURACY, source.digest, source.spec.use, body.to_dict(), relative])

    def make() -> dict[str, object]:
        return {name: summary.to_dict() for name, summary in _collect(source, relative=relative).items()}

    return {name: Summary.from_dict(data) for name, data in cached_json("statistics", digest, make).items()}


def _collect(source: Source, *, relative: bool) -> dict[str, Summary]:
    found: dict[str, Summary] = {}
    waiting: dict[str, list[NDArray[np.float32]]] = {}
    n = 0

    def flush() -> None:
        for name, parts in waiting.items():
            new = Summary.of(np.concatenate(parts))
            found[name] = found[name].merged(new) if name in found else new
        waiting.clear()

    for rows in _rows(source):
        for name, values in (_relative(rows, source.embodiment.horizon) if relative else rows).items():
            waiting.setdefault(name, []).append(values)
        n += len(rows["action"])
        if n >= _ROWS:
            flush()
            n = 0
    flush()
    if not found or not all(summary.count for summary in found.values()):
        raise DataError(f"source '{source.name}': it holds no finite actions to take statistics of")
    return found


def _relative(rows: Rows, horizon: int) -> Rows:
    action, state = rows["action"], rows["state"]
    steps = range(min(horizon, len(action)))
    return {f"action_{h}": action[h:] - state[: len(action) - h] for h in steps}


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
        total = float(sum(shares[source.name] for source in members))
        for kind in parts[0]:
            rows = sum(part[kind].count for part in parts)
            for source, part in zip(members, parts, strict=True):
                weight = float(shares[source.name]) / total * rows / part[kind].count
                new = part[kind].scaled(weight)
                known = found.setdefault(name, {})
                known[kind] = known[kind].merged(new) if kind in known else new
    return found


def normalizers(sources: Sequence[Source], shares: Mapping[str, Fraction]) -> dict[str, dict[str, Normalizer]]:
    """Returns the normalisers of every embodiment.

    Actions and states are mapped by their 1 % and 99 % quantiles, latent actions to zero mean and unit spread.
    """
    label = {source.embodiment.name: source.embodiment.label for source in sources}
    return {
        name: {kind: _normalizer(summary, latent=label[name] == "latent") for kind, summary in kinds.items()}
        for name, kinds in embodiment_statistics(sources, shares).items()
    }


def _normalizer(summary: Summary, *, latent: bool) -> Normalizer:
    if latent:
        return make_normalizer("mean_std", summary.mean, summary.std)
    low, high = summary.quantile(0.01), summary.quantile(0.99)
    return make_normalizer("q01_q99", (low + high) / 2, (high - low) / 2)
