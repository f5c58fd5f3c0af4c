"""The verb ``mix audit``: what a training run was really given, against the plan, to the sample; and odd actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, ExitCode
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.drawn import DrawnSamples, read_drawn
from pyramid.mixture.sketch import Summary
from pyramid.mixture.statistics import embodiment_statistics, source_statistics
from pyramid.table import format_table

_ODD_SHARE = 0.05
"""Share of values beyond the 1 % and 99 % quantiles above which a source is called odd; 0.02 are expected."""
_DEAD = 1e-6
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class MixAuditResult:
    """What a run was given, against the plan."""

    run: str
    """Model folder."""
    mixture: str
    """Mixture file that it is held against."""
    same_data: bool
    """Whether mixture, clips and labels are those that were trained on."""
    draws: int
    """Samples that the run was given."""
    counts: dict[str, int]
    """Samples of each source, as they were drawn."""
    planned: dict[str, int]
    """The same by the plan, as ``mix simulate`` counts them."""
    differences: int
    """Samples that are missing, doubled, or of another source or (if not replaced) clip than planned."""
    replaced: int
    """Samples that stood in for others that could not be read."""
    first_differences: list[str] = field(default_factory=list)
    """The first of the differences, in words."""
    epochs: dict[str, float] = field(default_factory=dict)
    """How often the samples of each source were seen."""
    outliers: list[dict[str, Any]] = field(default_factory=list)
    """Per source: rows that are not finite, dimensions that stand still, share of values past q01 and q99."""

    @property
    def exit_code(self) -> ExitCode:
        """Failed when the run was given anything but what was planned."""
        return ExitCode.FAILED if self.differences else ExitCode.DONE

    def __repr__(self) -> str:
        rows = [[n, c, self.planned.get(n, 0), f"{self.epochs.get(n, 0):.2f}"] for n, c in self.counts.items()]
        table = format_table(["source", "drawn", "planned", "epochs"], rows)
        odd = [[o["source"], o["not_finite"], o["dead"], f"{o['beyond']:.1%}", o["odd"]] for o in self.outliers]
        head = ["source", "not finite", "dead dimensions", "beyond q01..q99", "look at it"]
        verdict = "as planned, to the sample" if not self.differences else f"{self.differences} differ from the plan:"
        data = "" if self.same_data else "\nthe mixture or its data changed since the run"
        lines = "".join(f"\n  {line}" for line in self.first_differences)
        told = f"{self.draws} samples, {self.replaced} replaced, {verdict}{lines}{data}"
        return f"{table}\n{told}\n{format_table(head, odd)}"


def mix_audit(run: str, *, mixture: str | None = None) -> MixAuditResult:
    """Holds what a training run was really given against the plan, and looks for odd actions.

    Args:
        run: model folder of ``pyramid train vla``.
        mixture: the mixture file; by default where the run found it.

    Raises:
        DataError: no log of drawn samples, or a source that cannot be opened.
    """
    drawn = read_drawn(run)
    place = mixture or drawn.mixture
    if not len(drawn.position):
        raise ConfigError(f"'{run}' was given no samples yet")
    stream = open_mixture(place, batch_size=1, image_size=16)
    draws = int(drawn.position.max()) + 1
    found = _differences(drawn, stream, draws)
    counts = Counter(drawn.source.tolist())
    return MixAuditResult(
        run=run,
        mixture=place,
        same_data=stream.data_digest == drawn.digest,
        draws=len(drawn.position),
        counts={source.name: counts[source.name] for source in stream.sources}
        | {name: n for name, n in counts.items() if name not in stream.plan.names},
        planned=stream.plan.counts(draws),
        differences=len(found),
        replaced=int(drawn.replaced.sum()),
        first_differences=found[:_SHOWN],
        epochs={source.name: counts[source.name] / len(source) for source in stream.sources},
        outliers=find_outliers(stream),
    )


def _differences(drawn: DrawnSamples, stream: MixtureStream, draws: int) -> list[str]:
    """Returns, for each position at which the run was given something else than planned, what it was."""
    times = np.bincount(drawn.position, minlength=draws)
    found = [f"position {g} was drawn {times[g]} times" for g in np.flatnonzero(times != 1).tolist()]
    numbers, ranks = stream.plan.at(drawn.position)
    for place, (number, rank) in enumerate(zip(numbers.tolist(), ranks.tolist(), strict=True)):
        source, position = stream.sources[number], drawn.position[place]
        if drawn.source[place] != source.name:
            found.append(f"position {position}: source '{drawn.source[place]}', planned was '{source.name}'")
        elif not drawn.replaced[place]:
            clip, _ = source.locate(source.order.at(rank))
            key = source.clips.table["key"][clip].as_py()
            if key != drawn.key[place]:
                found.append(f"position {position}: clip {drawn.key[place]}, planned was {key}")
    return found


def find_outliers(stream: MixtureStream) -> list[dict[str, Any]]:
    """Looks through all actions of every source, as the policy's normalisers see them."""
    pooled = embodiment_statistics(stream.sources, stream.typical_shares)
    return [
        {
            "source": s.name,
            "embodiment": s.embodiment.name,
            **_odd(source_statistics(s)["action"], pooled[s.embodiment.name]["action"]),
        }
        for s in stream.sources
        if s.embodiment.label != "video"
    ]


def _odd(own: Summary, pooled: Summary) -> dict[str, Any]:
    low, high = pooled.quantile(0.01), pooled.quantile(0.99)
    dead = np.flatnonzero(own.std <= _DEAD * np.maximum(1.0, np.abs(own.mean))).tolist()
    beyond = [own.share_beyond(d, low[d], high[d]) for d in range(len(low))]
    half = np.maximum((high - low) / 2, 1e-12)
    furthest = _furthest(own, (low + high) / 2, half)
    worst = max(beyond)
    reasons = [
        *(["not finite"] if own.bad else []),
        *(["dead"] if dead else []),
        *([f"dimension {int(np.argmax(beyond))}"] if worst > _ODD_SHARE else []),
    ]
    return {
        "not_finite": own.bad,
        "dead": dead,
        "beyond": worst,
        "furthest": max((f for d, f in enumerate(furthest) if d not in dead), default=0.0),
        "odd": ", ".join(reasons),
    }


def _furthest(own: Summary, center: NDArray[np.float64], half: NDArray[np.float64]) -> Sequence[float]:
    """Returns the largest normalised size of each dimension."""
    return [float(v) for v in np.maximum(np.abs(own.low - center), np.abs(own.high - center)) / half]
