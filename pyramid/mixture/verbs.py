"""The verbs ``mix show``, ``mix what-if`` and ``mix simulate``: look at a mixture, try another, prove its shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from pyramid.errors import ConfigError, nearest
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.schedule import Schedule
from pyramid.mixture.sketch import Summary
from pyramid.mixture.spec import MixtureSpec, read_mixture
from pyramid.mixture.statistics import embodiment_statistics
from pyramid.mixture.weights import ledger, needs_sizes
from pyramid.table import format_table
from pyramid.types import Embodiment

_PER = 100_000
_ON_DISK = ("action", "state")


@dataclass(frozen=True, kw_only=True)
class MixShowResult:
    """A mixture as a table."""

    unit: str
    """What the weights count."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Per source: tier, name, use, embodiment, how its actions are taught, label runs, clips, frames, hours, items,
    weights and share, epochs."""
    ledger: list[dict[str, Any]] = field(default_factory=list)
    """Shares of samples of every source and the position from which on they hold."""
    statistics: list[dict[str, Any]] = field(default_factory=list)
    """Per embodiment, kind and dimension: mean, std, min, max, q01, q99; empty unless asked for."""

    def __repr__(self) -> str:
        head = ["tier", "source", "use", "embodiment", "clips", "minutes", "frames", "items"]
        head += ["weight", f"of {self.unit}", "share", "epochs / 100k"]
        rows = [
            [
                *(s[name] for name in ("tier", "source", "use", "embodiment", "clips")),
                f"{s['hours'] * 60:.1f}",
                s["frames"],
                s["items"],
                f"{s['tier_weight']:g} x {s['weight']:g}",
                f"{s['unit_share']:.2%}",
                f"{s['share']:.2%}",
                f"{s['epochs_per_100k']:.1f}",
            ]
            for s in self.sources
        ]
        runs = [f"labels of {s['source']}: {run}" for s in self.sources for run in s["labels"]]
        taught = [f"actions of {s['source']}: {s['actions']}" for s in self.sources if s["actions"]]
        parts = [format_table(head, rows), draw_pyramid(self.sources), *runs, *taught]
        if len(self.ledger) > 1:
            names = [s["source"] for s in self.sources]
            changes = [[p["start"], *(f"{p['shares'][name]:.2%}" for name in names)] for p in self.ledger]
            parts.append(format_table(["from sample", *names], changes))
        if self.statistics:
            columns = list(self.statistics[0])
            lines = [[v if isinstance(v, str | int) else f"{v:.4g}" for v in s.values()] for s in self.statistics]
            parts.append(format_table(columns, lines))
        return "\n".join(parts)


def draw_pyramid(sources: list[dict[str, Any]], width: int = 40) -> str:
    """Draws the levels as bars whose length is their share."""
    lines = []
    for tier in ("top", "middle", "base"):
        share = sum(s["share"] for s in sources if s["tier"] == tier)
        if share:
            lines.append(f"{tier:>8} {('#' * max(round(share * width), 1)).center(width)} {share:.1%}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class MixSimulateResult:
    """What a mixture would draw."""

    draws: int
    """Samples drawn."""
    counts: dict[str, int]
    """Samples of each source."""
    target: dict[str, float]
    """Share of each source."""
    max_deviation: float
    """Largest distance of any source's count from its share at any prefix, from the last change on, samples."""

    def __repr__(self) -> str:
        rows = [
            [name, count, f"{count / self.draws:.4%}", f"{self.target[name]:.4%}"]
            for name, count in self.counts.items()
        ]
        table = format_table(["source", "samples", "drawn", "target"], rows)
        return (
            f"{table}\nat no prefix of {self.draws} draws is a source off by more than {self.max_deviation:.3f} samples"
        )


@dataclass(frozen=True, kw_only=True)
class MixWhatIfResult:
    """Two mixtures of the same sources side by side."""

    draws: int
    """Samples of the training that is thought of."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Per source: share, epochs and the draw that ends its first epoch, before and with the change."""

    def __repr__(self) -> str:
        head = ["source", "items", "share", "-> share", "epochs", "-> epochs", "seen once after", "->"]
        rows = [
            [
                s["source"],
                s["items"],
                f"{s['share_before']:.2%}",
                f"{s['share']:.2%}",
                f"{s['epochs_before']:.2f}",
                f"{s['epochs']:.2f}",
                *("never" if s[name] is None else s[name] for name in ("exhausted_before", "exhausted")),
            ]
            for s in self.sources
        ]
        return f"{format_table(head, rows)}\nin {self.draws} samples"


def mix_show(mixture: str, *, statistics: bool = False, relative: bool = False) -> MixShowResult:
    """Shows what a mixture holds and how often it will be seen.

    Args:
        mixture: the mixture file.
        statistics: also mean, std, min, max, q01 and q99 of every embodiment's actions and states.
        relative: the same of measured actions as declared delta or relative, for each step of a chunk (``action_0``,
            ``action_1``, ...); or, of embodiments that are not declared and whose actions and states have the same
            dimensions, of actions less the state at the chunk's start.

    Raises:
        ConfigError: relative actions are asked for, and no embodiment has them.
    """
    stream = open_mixture(mixture, batch_size=1, image_size=16)
    return MixShowResult(
        unit=stream.spec.unit,
        sources=_rows(stream),
        ledger=[
            {"start": piece.start, "shares": {name: float(share) for name, share in piece.shares.items()}}
            for piece in stream.plan.ledger
        ],
        statistics=(_statistics(stream) if statistics else []) + (_relative(stream) if relative else []),
    )


def _rows(stream: MixtureStream) -> list[dict[str, Any]]:
    shares, in_unit = stream.plan.shares, stream.spec.shares()
    return [
        {
            "tier": source.tier,
            "source": source.name,
            "use": source.spec.use,
            "embodiment": source.embodiment.name,
            "actions": _taught(source.embodiment),
            "labels": source.labels.runs if source.labels else [],
            "clips": len(source.clips),
            "frames": source.n_frames,
            "hours": source.hours,
            "items": len(source),
            "tier_weight": stream.spec.tiers[source.tier].weight,
            "weight": source.spec.weight,
            "unit_share": float(in_unit[source.name]),
            "share": float(shares[source.name]),
            "epochs_per_100k": float(stream.plan.target(_PER)[source.name]) * _PER / len(source),
        }
        for source in stream.sources
    ]


def _taught(body: Embodiment) -> str:
    """Says how a declared body's actions are given to a network; empty for one that is not declared."""
    if body.declaration is None:
        return ""
    kinds: dict[str, list[str]] = {}
    for name, part in body.declaration.action.items():
        kinds.setdefault(part.representation, []).append(name)
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())


def _relative(stream: MixtureStream) -> list[dict[str, Any]]:
    sources = [s for s in stream.sources if _by_step(s.embodiment)]
    if not sources:
        raise ConfigError("relative actions need states of the same dimensions as the actions; no source has them")
    found = embodiment_statistics(sources, stream.typical_shares, relative=True)
    return _told({name: {k: s for k, s in kinds.items() if k not in _ON_DISK} for name, kinds in found.items()})


def _by_step(body: Embodiment) -> bool:
    """Whether actions can be taken less the state, as declared or as a whole."""
    return bool(body.codec is not None and len(body.codec.by_step)) or body.state_dim == body.action_dim


def _statistics(stream: MixtureStream) -> list[dict[str, Any]]:
    found = embodiment_statistics(stream.sources, stream.typical_shares)
    return _told({name: {k: s for k, s in kinds.items() if k in _ON_DISK} for name, kinds in found.items()})


def _told(statistics: Mapping[str, Mapping[str, Summary]]) -> list[dict[str, Any]]:
    found = []
    for name, kinds in statistics.items():
        for kind, summary in kinds.items():
            low, high = summary.quantile(0.01), summary.quantile(0.99)
            columns = {"mean": summary.mean, "std": summary.std, "min": summary.low, "max": summary.high}
            for d in range(len(low)):
                values = {n: float(column[d]) for n, column in {**columns, "q01": low, "q99": high}.items()}
                found.append({"embodiment": name, "kind": kind, "dimension": d, **values})
    return found


def mix_simulate(mixture: str, *, draws: int = _PER) -> MixSimulateResult:
    """Counts what a mixture draws, without reading data.

    Args:
        mixture: the mixture file.
        draws: samples to draw.
    """
    _check_draws(draws)
    plan = _plan(read_mixture(mixture))
    return MixSimulateResult(
        draws=draws,
        counts=plan.counts(draws),
        target={name: float(share) for name, share in plan.target(draws).items()},
        max_deviation=plan.max_deviation(draws),
    )


def _plan(spec: MixtureSpec) -> Schedule:
    """Returns the schedule; only weights that depend on sizes need the indexes of the shards."""
    if needs_sizes(spec):
        return open_mixture(spec, batch_size=1, image_size=16).plan
    return Schedule(ledger(spec))


def mix_what_if(
    mixture: str,
    *,
    weights: Sequence[str] = (),
    unit: str | None = None,
    alpha: float | None = None,
    max_epochs: float | None = None,
    draws: int = _PER,
) -> MixWhatIfResult:
    """Tries other weights: how often every source would repeat, and when it would have been seen once.

    Args:
        mixture: the mixture file, which stays as it is.
        weights: new weights of tiers or sources, such as ``robot=0.5``.
        unit: samples, frames or hours.
        alpha: temperature within the tiers.
        max_epochs: cap on repeats within ``draws``.
        draws: samples of the training that is thought of.

    Raises:
        ConfigError: a name that the mixture does not have, or weights that make none.
    """
    _check_draws(draws)
    spec = read_mixture(mixture)
    options: dict[str, Any] = {"unit": unit, "alpha": alpha, "max_epochs": max_epochs}
    options = {name: value for name, value in options.items() if value is not None}
    if max_epochs:
        options["budget_samples"] = draws
    try:
        changed = replace(_weighted(spec, weights), **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    everything = open_mixture(_everything(spec, changed), batch_size=1, image_size=16)
    sizes = {source.name: source.size for source in everything.sources}
    plans = [Schedule(ledger(one, {n: sizes[n] for _, n, _ in one.sources()})) for one in (spec, changed)]
    return MixWhatIfResult(
        draws=draws, sources=[_compared(name, size.items, plans, draws) for name, size in sizes.items()]
    )


def _compared(name: str, items: int, plans: Sequence[Schedule], draws: int) -> dict[str, Any]:
    row: dict[str, Any] = {"source": name, "items": items}
    for plan, suffix in zip(plans, ("_before", ""), strict=True):
        drawn = name in plan.names
        row[f"share{suffix}"] = float(plan.target(draws)[name]) if drawn else 0.0
        row[f"epochs{suffix}"] = plan.counts(draws)[name] / items if drawn else 0.0
        row[f"exhausted{suffix}"] = _exhausted(plan, name, items) if drawn else None
    return row


def _exhausted(plan: Schedule, name: str, items: int) -> int | None:
    """Returns after how many draws every item of a source was seen; None if its share ends before."""
    last = plan.ledger[-1]
    share = last.shares[name] or Fraction(1, 10**12)
    low, high = 0, last.start + int(items / share) + 2
    if plan.counts(high)[name] < items or (not last.shares[name] and plan.counts(last.start)[name] < items):
        return None
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if plan.counts(middle)[name] >= items else (middle, high)
    return high


def _weighted(spec: MixtureSpec, weights: Sequence[str]) -> MixtureSpec:
    tiers = dict(spec.tiers)
    home = {name: tier for tier, t in spec.tiers.items() for name in t.sources}
    for text in weights:
        name, _, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise ConfigError(f"--weights takes NAME=NUMBER, got '{text}'") from None
        if name in tiers:
            tiers[name] = replace(tiers[name], weight=weight)
        elif name in home:
            tier = tiers[home[name]]
            source = replace(tier.sources[name], weight=weight)
            tiers[home[name]] = replace(tier, sources={**tier.sources, name: source})
        else:
            known = [*tiers, *home]
            raise ConfigError(f"'{name}' is not in the mixture{nearest(name, known)}; it has {', '.join(known)}")
    return replace(spec, tiers=tiers)


def _everything(*specs: MixtureSpec) -> MixtureSpec:
    """Returns a mixture that draws from every source that one of the mixtures draws from."""
    drawn = {name for spec in specs for _, name, _ in spec.sources()}
    tiers = {}
    for tier, old in specs[0].tiers.items():
        sources = {n: replace(s, weight=1.0 if n in drawn else 0.0) for n, s in old.sources.items()}
        if any(n in drawn for n in sources):
            tiers[tier] = replace(old, weight=1.0, sources=sources)
    plain: dict[str, Any] = {"unit": "samples", "alpha": 0.0, "max_epochs": 0.0, "budget_samples": 0}
    return replace(specs[0], tiers=tiers, schedule=[], schedule_batch=0, **plain)


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}")
