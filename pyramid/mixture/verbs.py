"""The verbs ``mix show`` and ``mix simulate``: look at a mixture, and prove its shares before a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyramid.errors import ConfigError
from pyramid.mixture.batch import open_mixture
from pyramid.mixture.schedule import Schedule
from pyramid.mixture.spec import read_mixture
from pyramid.table import format_table

_PER = 100_000


@dataclass(frozen=True, kw_only=True)
class MixShowResult:
    """A mixture as a table."""

    unit: str
    """What the weights count."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Per source: tier, name, use, embodiment, clips, frames, hours, items, share, epochs per 100k samples."""

    def __repr__(self) -> str:
        head = ["tier", "source", "use", "embodiment", "clips", "minutes", "items", "share", "epochs / 100k"]
        rows = [
            [
                s["tier"],
                s["source"],
                s["use"],
                s["embodiment"],
                s["clips"],
                f"{s['hours'] * 60:.1f}",
                s["items"],
                f"{s['share']:.1%}",
                f"{s['epochs_per_100k']:.1f}",
            ]
            for s in self.sources
        ]
        return format_table(head, rows) + "\n" + draw_pyramid(self.sources)


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
    """Largest distance of any source's count from its share at any prefix, samples."""

    def __repr__(self) -> str:
        rows = [
            [name, count, f"{count / self.draws:.4%}", f"{self.target[name]:.4%}"]
            for name, count in self.counts.items()
        ]
        table = format_table(["source", "samples", "drawn", "target"], rows)
        return (
            f"{table}\nat no prefix of {self.draws} draws is a source off by more than {self.max_deviation:.3f} samples"
        )


def mix_show(mixture: str) -> MixShowResult:
    """Shows what a mixture holds and how often it will be seen.

    Args:
        mixture: the mixture file.
    """
    stream = open_mixture(mixture, batch_size=1, image_size=16)
    shares = stream.spec.shares()
    rows = [
        {
            "tier": source.tier,
            "source": source.name,
            "use": source.spec.use,
            "embodiment": source.embodiment.name,
            "clips": len(source.rows),
            "frames": source.n_frames,
            "hours": source.hours,
            "items": len(source),
            "share": float(shares[source.name]),
            "epochs_per_100k": float(shares[source.name]) * _PER / len(source),
        }
        for source in stream.sources
    ]
    return MixShowResult(unit=stream.spec.unit, sources=rows)


def mix_simulate(mixture: str, *, draws: int = _PER) -> MixSimulateResult:
    """Counts what a mixture draws, without reading data.

    Args:
        mixture: the mixture file.
        draws: samples to draw.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}")
    shares = read_mixture(mixture).shares()
    plan = Schedule(shares)
    return MixSimulateResult(
        draws=draws,
        counts=plan.counts(draws),
        target={name: float(share) for name, share in shares.items()},
        max_deviation=plan.max_deviation(draws),
    )
