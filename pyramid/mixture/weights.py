"""From the weights of a mixture file to shares of samples: units, temperature, caps on repeats, changes over steps.

The result is the schedule's ledger; which sample comes when is left to `pyramid.mixture.schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pyramid.errors import ConfigError
from pyramid.mixture.schedule import MAX_PERIOD, Piece, apportion
from pyramid.mixture.spec import ChangeSpec, MixtureSpec

_DIGITS = 10**6


@dataclass(frozen=True)
class Size:
    """How much a source holds."""

    items: int
    """Samples of one epoch."""
    frames_per_sample: float
    """Video frames that a sample's action chunk spans."""
    seconds_per_sample: float
    """Time that a sample's action chunk spans."""

    def per_sample(self, unit: str) -> Fraction:
        """Returns how much of a unit one sample is."""
        value = {"samples": 1.0, "frames": self.frames_per_sample, "hours": self.seconds_per_sample}[unit]
        return Fraction(value).limit_denominator(_DIGITS) / (3600 if unit == "hours" else 1)


def needs_sizes(spec: MixtureSpec) -> bool:
    """Whether shares of samples depend on how much the sources hold."""
    return spec.unit != "samples" or spec.alpha > 0 or spec.max_epochs > 0


def ledger(spec: MixtureSpec, sizes: Mapping[str, Size] | None = None) -> list[Piece]:
    """Returns the shares of samples and from which position on they hold.

    A change over many steps becomes pieces of constant weights, at most `MAX_PERIOD` samples each, whose shares are
    whole samples of their length: at the end of each piece every source has had exactly its share of it.

    Args:
        spec: the mixture.
        sizes: how much each source holds; needed where `needs_sizes` says so.

    Raises:
        ConfigError: caps on repeats that the sources cannot fill.
    """
    names = [name for _, name, _ in spec.sources()]
    weights = spec.weights()
    found = [Piece(0, _shares(spec, weights[0], sizes))]
    for change, before, after in zip(spec.schedule, weights, weights[1:], strict=False):
        for position, share in _ramp(change, spec.schedule_batch):
            found.append(Piece(position, _shares(spec, _between(before, after, share), sizes), ramp=True))
        found.append(Piece((change.step + change.over) * spec.schedule_batch, _shares(spec, after, sizes)))
    found = [Piece(p.start, {name: p.shares[name] for name in names}, p.ramp) for p in found]
    if spec.max_epochs and sizes is not None:
        found = _capped(spec, found, sizes)
    return _whole(found)


def _shares(
    spec: MixtureSpec, weights: Mapping[str, Fraction], sizes: Mapping[str, Size] | None
) -> dict[str, Fraction]:
    """Returns shares of samples: weights times size ** alpha within tiers, divided by what a sample is in the unit."""
    if sizes is None:
        return spec.flat(weights)
    per_sample = {name: size.per_sample(spec.unit) for name, size in sizes.items()}
    if spec.alpha:
        heat = {name: Fraction(float(size.items * per_sample[name]) ** spec.alpha) for name, size in sizes.items()}
        weights = {key: w * heat.get(key.rpartition("/")[2], 1) if "/" in key else w for key, w in weights.items()}
    parts = {name: share / per_sample.get(name, 1) for name, share in spec.flat(weights).items()}
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def _ramp(change: ChangeSpec, batch: int) -> list[tuple[int, Fraction]]:
    """Returns where the pieces of a change begin, and how far it has come in the middle of each."""
    length = change.over * batch
    n = min(max(change.pieces, -(-length // MAX_PERIOD)), length)
    if not n:
        return []
    starts = [change.step * batch + length * i // n for i in range(n)]
    way = [Fraction(2 * i + 1, 2 * n) for i in range(n)]
    if change.shape == "cosine":
        way = [Fraction(round((1 - math.cos(math.pi * float(t))) / 2 * _DIGITS), _DIGITS) for t in way]
    return list(zip(starts, way, strict=True))


def _between(before: Mapping[str, Fraction], after: Mapping[str, Fraction], way: Fraction) -> dict[str, Fraction]:
    return {key: weight + (after[key] - weight) * way for key, weight in before.items()}


def _whole(pieces: Sequence[Piece]) -> list[Piece]:
    """Rounds the shares of a change's pieces to whole samples of their lengths; what is left over goes to the next.

    Shares that hold until a later change begins stay as they are: adding that change must not move what comes before.
    """
    found, owed = [], dict.fromkeys(pieces[0].shares, Fraction())
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        length = following.start - piece.start if following else MAX_PERIOD + 1
        if not piece.ramp or length > MAX_PERIOD:
            found.append(piece)
            continue
        ideal = {name: share * length + owed[name] for name, share in piece.shares.items()}
        counts = apportion(ideal, length)
        owed = {name: ideal[name] - counts[name] for name in counts}
        found.append(Piece(piece.start, {name: Fraction(n, length) for name, n in counts.items()}, ramp=True))
    return found


def _capped(spec: MixtureSpec, pieces: list[Piece], sizes: Mapping[str, Size]) -> list[Piece]:
    """Lowers the shares of sources that would repeat too often; the others take over in proportion.

    With equal weights this is UniMax (Chung et al. 2023, arXiv 2304.09151, algorithm 1).
    """
    budget, names = spec.budget_samples, list(pieces[0].shares)
    cap = {name: spec.max_epochs * sizes[name].items for name in names}
    if sum(cap.values()) < budget:
        raise ConfigError(
            f"max_epochs: {spec.max_epochs:g} allows {sum(cap.values()):,.0f} samples of all sources together, "
            f"budget_samples asks for {budget:,}; raise one or lower the other"
        )
    ends = [*(piece.start for piece in pieces[1:]), max(budget, pieces[-1].start)]
    lengths = [max(min(end, budget) - piece.start, 0) for piece, end in zip(pieces, ends, strict=True)]
    factor, capped = dict.fromkeys(names, 1.0), set[str]()
    for _ in range(10_000):
        shares = [_scaled(piece, factor) for piece in pieces]
        drawn = {name: sum(s[name] * n for s, n in zip(shares, lengths, strict=True)) for name in names}
        over = {name for name in names if drawn[name] > cap[name] * (1 + 1e-9)}
        if not over:
            break
        capped |= over
        for name in capped:
            factor[name] *= cap[name] / drawn[name]
    if not capped:
        return pieces
    return [Piece(p.start, _below(s, capped, p.start), p.ramp) for p, s in zip(pieces, shares, strict=True)]


def _scaled(piece: Piece, factor: Mapping[str, float]) -> dict[str, float]:
    parts = {name: float(share) * factor[name] for name, share in piece.shares.items()}
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def _below(shares: Mapping[str, float], capped: set[str], start: int) -> dict[str, Fraction]:
    """Puts shares on the schedule's grid, those with a cap not above their own."""
    parts = {name: math.floor(shares[name] * MAX_PERIOD * (1 + 1e-9)) for name in shares if name in capped}
    for name in (name for name, part in parts.items() if not part and shares[name]):
        raise ConfigError(
            f"source '{name}': max_epochs leaves it less than 1/{MAX_PERIOD} of the samples from position {start} on; "
            "raise max_epochs, or give it weight 0"
        )
    free = {name: Fraction(share) for name, share in shares.items() if name not in capped}
    rest = MAX_PERIOD - sum(parts.values())
    if not free:
        return {name: Fraction(part, sum(parts.values())) for name, part in parts.items()}
    total = sum(free.values())
    parts |= apportion({name: share / total * rest for name, share in free.items()}, rest)
    return {name: Fraction(parts[name], MAX_PERIOD) for name in shares}
