"""The mixture file: tiers, sources, weights; checked when it is read, before anything is opened.

What the weights mean in samples is left to `pyramid.mixture.weights`, the order to `pyramid.mixture.schedule`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pyramid import files
from pyramid.config import from_dict
from pyramid.errors import ConfigError, nearest
from pyramid.mixture.augment import AugmentSpec
from pyramid.mixture.extend import load_extended
from pyramid.types import NAME_PATTERN, TIERS

Use = Literal["action", "pseudo", "latent", "video"]
Unit = Literal["samples", "frames", "hours"]


@dataclass(frozen=True, kw_only=True)
class ScoresSpec:
    """A table of scores, such as ``dream judge`` writes, and what clips must reach; one without a score does not."""

    path: str = ""
    """Parquet file with a row per clip, told by ``item``, ``key`` or ``clip_id``; relative to the mixture file."""
    min: dict[str, float] = field(default_factory=dict)
    """Smallest value by column."""
    max: dict[str, float] = field(default_factory=dict)
    """Largest value by column."""
    verdict: str = ""
    """Only clips with this verdict, such as ``keep``."""

    def __post_init__(self) -> None:
        """Refuses bounds that are no numbers, and bounds without a table or a table without bounds."""
        for name, bound in (*self.min.items(), *self.max.items()):
            if math.isnan(bound):
                raise ValueError(f"scores: the bound of '{name}' must be a number, got nan")
        if bool(self.path) != bool(self.min or self.max or self.verdict):
            raise ValueError("scores: a path goes with min, max or verdict")


@dataclass(frozen=True, kw_only=True)
class FilterSpec:
    """Which clips and which labelled steps of a source are drawn; what a default leaves alone is not looked at."""

    split: str = ""
    """Train on the clips of this split of the index; empty takes the split that is asked for."""
    embodiment: str = ""
    """Only clips of this embodiment; empty takes any."""
    text: str = ""
    """Regular expression that a clip's text must contain; empty takes any."""
    has_text: bool = False
    """Only clips with a text."""
    max_static_share: float = math.inf
    """Largest share of a clip's frames that stand still, 0 to 1, from the index."""
    max_camera_px: float = math.inf
    """Largest camera motion of a clip, pixels per frame, from the index."""
    without_notes: list[str] = field(default_factory=list)
    """Only clips that bear none of these notes in the index."""
    scores: ScoresSpec = field(default_factory=ScoresSpec)
    """Only clips that a table of scores speaks for."""
    max_action_std: float = math.inf
    """Only pseudo-actions whose votes agree: largest standard deviation of any dimension, physical units."""
    min_votes: int = 0
    """Only pseudo-actions from at least this many votes."""
    min_recon_gain: float = -math.inf
    """Only latent actions that help the reconstruction at least this much."""
    without_flags: int = 0
    """Only labels that bear none of these flags; the sum of their bits."""

    def __post_init__(self) -> None:
        """Refuses patterns that are none and bounds that are no numbers."""
        try:
            re.compile(self.text)
        except re.error as error:
            raise ValueError(f"text '{self.text}' is no regular expression: {error}") from error
        for name in ("max_static_share", "max_camera_px", "max_action_std", "min_recon_gain"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name} must be a number, got nan")
        if self.min_votes < 0 or self.without_flags < 0:
            raise ValueError("min_votes and without_flags must be at least 0")

    def label_bounds(self) -> list[str]:
        """Returns the names of the bounds on labels that are set."""
        names = ("max_action_std", "min_votes", "min_recon_gain", "without_flags")
        return [name for name in names if getattr(self, name) != getattr(FilterSpec, name)]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One shard folder or more, seen in one way."""

    shards: str | list[str]
    """Shard folder or folders; relative to the mixture file."""
    use: Use
    """What is learned from it: measured actions, an IDM's pseudo-actions, a LAM's latent actions, or, from videos
    alone, what is seen ``future_s`` later."""
    labels: str | list[str] = ""
    """Folder of the label run for pseudo and latent, one for each shard folder; relative to the mixture file."""
    weight: float = 1.0
    """Share within its tier, relative to the tier's other sources, in the mixture's unit."""
    embodiment: str = ""
    """Slot of the policy, [a-z0-9_]+; empty takes the clips' own, with _pseudo or _latent."""
    declaration: str = ""
    """What its numbers are: a shipped embodiment such as ``gr1``, a YAML file, or the `modality.json` (or the folder)
    of a data set, relative to the mixture file; empty gives a network the numbers as they are."""
    actions: Literal["", "absolute", "delta", "relative"] = ""
    """What a network is taught of joints, positions, rotations and poses: the values, each step less the one before, or
    each step less the state at the chunk's start; empty: as declared, or absolute."""
    state: bool = True
    """Whether a policy is told the state that was measured; false hides it. Where only a few demonstrations have one
    and most samples are videos, a policy that is told it learns to act by the few."""
    filter: FilterSpec = field(default_factory=FilterSpec)
    """Which of its clips and labels are drawn."""

    def __post_init__(self) -> None:
        """Refuses labels that do not go with the use."""
        bare = self.use in ("action", "video")
        if bare != (not self.runs()):
            raise ValueError(f"use: {self.use} goes {'without' if bare else 'with'} a label run")
        if not self.folders() or (self.runs() and len(self.runs()) != len(self.folders())):
            raise ValueError(
                f"{len(self.runs())} label runs for {len(self.folders())} shard folders; name one for each"
            )
        if bare and self.filter.label_bounds():
            raise ValueError(f"filter.{self.filter.label_bounds()[0]} is for labels, and use: {self.use} has none")
        if self.use not in ("action", "pseudo") and (self.declaration or self.actions):
            raise ValueError(f"use: {self.use} has no numbers of a body: declaration and actions do not go with it")
        if not self.state and self.use != "action":
            raise ValueError(f"use: {self.use} has no measured state that state: false could hide")
        if self.embodiment and not NAME_PATTERN.fullmatch(self.embodiment):
            raise ValueError(f"embodiment '{self.embodiment}': use a-z, 0-9 and _")

    def folders(self) -> list[str]:
        """Returns the shard folders as they are written."""
        return [self.shards] if isinstance(self.shards, str) else list(self.shards)

    def runs(self) -> list[str]:
        """Returns the label runs as they are written, one for each shard folder; none for measured actions."""
        return [run for run in ([self.labels] if isinstance(self.labels, str) else self.labels) if run]


@dataclass(frozen=True, kw_only=True)
class ChangeSpec:
    """Weights that change during the training; what it does not name stays."""

    step: int
    """Step at which the change begins, at least 1."""
    tiers: dict[str, float] = field(default_factory=dict)
    """New weights of tiers."""
    sources: dict[str, float] = field(default_factory=dict)
    """New weights of sources within their tiers."""
    over: int = 0
    """Steps until the new weights are reached; 0 changes at once."""
    shape: Literal["linear", "cosine"] = "linear"
    """How the weights go over into the new ones."""
    pieces: int = 16
    """Pieces of constant weights that the way is made of, at least 1."""

    def __post_init__(self) -> None:
        """Refuses weights that are none, and changes of nothing."""
        for name, weight in (*self.tiers.items(), *self.sources.items()):
            _check_weight(weight, f"step {self.step}, '{name}'")
        if not self.tiers and not self.sources:
            raise ValueError("a change names tiers or sources with their new weights")
        if self.step < 1 or self.over < 0 or self.pieces < 1:
            raise ValueError("a change needs step >= 1, over >= 0 and pieces >= 1")


@dataclass(frozen=True, kw_only=True)
class TierSpec:
    """One level of the pyramid."""

    weight: float
    """Share of the whole, relative to the other tiers."""
    sources: dict[str, SourceSpec]
    """Sources by name."""


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """A data pyramid."""

    tiers: dict[str, TierSpec]
    """Levels by name: base, middle, top."""
    unit: Unit = "samples"
    """What the weights count: training samples, frames that the samples span, or hours that they span."""
    alpha: float = 0.0
    """Temperature: within a tier, weights are multiplied by size ** alpha, size in the unit; 0 leaves them."""
    max_epochs: float = 0.0
    """How often any source is repeated at most within ``budget_samples`` (UniMax); 0 sets no cap."""
    budget_samples: int = 0
    """Samples for which ``max_epochs`` holds: steps times batch size of the training."""
    schedule: list[ChangeSpec] = field(default_factory=list)
    """Changes of the weights, in order of their steps."""
    schedule_batch: int = 0
    """Samples of a step in ``schedule``: the training's batch size over all ranks; needed with a schedule."""
    horizon: int = 8
    """Steps of an action chunk."""
    future_s: float = 0.0
    """Each sample comes with the frame that many seconds later, where its clip has one; 0 reads none. Needed with
    ``use: video``."""
    state_history: int = 1
    """States that each sample of a robot holds, oldest first, the present one last; before a clip's first state, that
    one stands. Needs a policy with as many (``head.state_history``)."""
    state_gap_s: float = 0.0
    """Seconds between them, rounded to whole steps of a clip, at least one; goes with a history."""
    seed: int = 0
    """Decides the order within each source."""
    cache_mb: int = 4096
    """Bound of the decoded frames kept in memory, MiB, over all sources and workers of a process; taken as needed."""
    shard_cache_mb: int = 0
    """Bound of remote shards kept on the local disk, MiB; 0 reads from the store sample by sample."""
    window_shards: int = 64
    """Shards whose clips are shuffled among each other; the shards themselves are shuffled first."""
    shuffle_frames: int = 2048
    """Frames over which the samples of a clip are spread: so many frames of a source are mixed at a time."""
    max_bad_share: float = 0.01
    """Share of samples that may turn out unreadable; they are replaced and counted, more stop the run. Judged over all
    samples that a rank's workers read since the process began, counted as at least 100."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """How training pictures are varied."""
    folder: str = field(default="", metadata={"internal": True})
    """Where the file lies; set when it is read."""

    def __post_init__(self) -> None:
        """Refuses what makes no mixture; the tier, source or option is named."""
        names = self._check_tiers()
        self._check_numbers()
        self._check_schedule(names)

    def _check_tiers(self) -> list[str]:
        """Refuses tiers that are none, weights that are no shares, and names that stand twice; returns the sources."""
        for name, tier in self.tiers.items():
            if name not in TIERS:
                raise ValueError(f"unknown tier '{name}'{nearest(name, TIERS)}; known: {', '.join(TIERS)}")
            _check_weight(tier.weight, f"tier '{name}'")
            for source, one in tier.sources.items():
                _check_weight(one.weight, f"source '{source}'")
            if not any(one.weight > 0 for one in tier.sources.values()):
                raise ValueError(f"tier '{name}': a tier needs a source with a weight above 0")
        if not any(tier.weight > 0 for tier in self.tiers.values()):
            raise ValueError("a mixture needs a tier with a weight above 0")
        names = [name for tier in self.tiers.values() for name in tier.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the source '{twice[0]}' stands in two tiers; names are unique in a mixture")
        silent = [n for tier in self.tiers.values() for n, s in tier.sources.items() if s.use == "video"]
        if silent and not self.future_s:
            raise ValueError(f"source '{silent[0]}' is use: video; set future_s, how far ahead it is to be foreseen")
        return names

    def _check_numbers(self) -> None:
        least = {
            "horizon": 1,
            "state_history": 1,
            "window_shards": 1,
            "shuffle_frames": 1,
            "cache_mb": 0,
            "shard_cache_mb": 0,
            "budget_samples": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 <= self.future_s < math.inf:
            raise ValueError(f"future_s must be a number of seconds from 0 on, got {self.future_s}")
        if not 0 <= self.state_gap_s < math.inf or (self.state_history > 1) != (self.state_gap_s > 0):
            raise ValueError(
                "state_history above 1 and state_gap_s, above 0, go together: how many states, how far apart; got "
                f"{self.state_history} and {self.state_gap_s}"
            )
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"max_bad_share must be in [0, 1), got {self.max_bad_share}")
        if not 0 <= self.alpha <= 2:
            raise ValueError(f"alpha must be in [0, 2], got {self.alpha}")
        if not 0 <= self.max_epochs < math.inf or (self.max_epochs > 0) != (self.budget_samples > 0):
            raise ValueError("max_epochs, above 0, and budget_samples go together: how often within how many samples")

    def _check_schedule(self, sources: list[str]) -> None:
        if (self.schedule_batch > 0) != bool(self.schedule):
            raise ValueError("a schedule counts steps: schedule_batch, the samples of a step, goes with it")
        for change in self.schedule:
            for name, known in (
                *((n, list(self.tiers)) for n in change.tiers),
                *((n, sources) for n in change.sources),
            ):
                if name not in known:
                    raise ValueError(f"schedule: '{name}' is not in the mixture{nearest(name, known)}")
        ends = [0, *(change.step + change.over for change in self.schedule)]
        for change, end in zip(self.schedule, ends, strict=False):
            if change.step < max(end, 1):
                raise ValueError(
                    f"schedule: the change at step {change.step} begins before the last one ends, at {end}"
                )
        for weights in self.weights():
            if not any(self.flat(weights).values()):
                raise ValueError("the schedule leaves no source with a weight above 0")

    def weights(self) -> list[dict[str, Fraction]]:
        """Returns the weights as written, first and after each change: by ``tier`` and by ``tier/source``."""
        now = {tier: Fraction(str(t.weight)) for tier, t in self.tiers.items()}
        tier_of = {name: tier for tier, t in self.tiers.items() for name in t.sources}
        now |= {f"{t}/{name}": Fraction(str(self.tiers[t].sources[name].weight)) for name, t in tier_of.items()}
        found = [now]
        for change in self.schedule:
            changed = {tier: Fraction(str(w)) for tier, w in change.tiers.items()}
            changed |= {f"{tier_of[name]}/{name}": Fraction(str(w)) for name, w in change.sources.items()}
            found.append(found[-1] | changed)
        return found

    def flat(self, weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
        """Returns the shares that weights by tier and source give, of all sources, in the mixture's unit."""
        inner = {t: sum(weights[f"{t}/{name}"] for name in spec.sources) for t, spec in self.tiers.items()}
        total = sum(weights[tier] for tier in self.tiers if inner[tier])
        return {
            name: weights[tier] * weights[f"{tier}/{name}"] / inner[tier] / total
            if inner[tier] and total
            else Fraction()
            for tier in TIERS
            if tier in self.tiers
            for name in self.tiers[tier].sources
        }

    def sources(self) -> Iterator[tuple[str, str, SourceSpec]]:
        """Yields ``(tier, name, source)`` of all sources that have a share at some time, base first."""
        drawn = {name for weights in self.weights() for name, share in self.flat(weights).items() if share}
        for tier in TIERS:
            for name, source in self.tiers[tier].sources.items() if tier in self.tiers else ():
                if name in drawn:
                    yield tier, name, source

    def shares(self) -> dict[str, Fraction]:
        """Returns each source's exact share at the start, in the mixture's unit; they sum to 1."""
        flat = self.flat(self.weights()[0])
        return {name: flat[name] for _, name, _ in self.sources()}

    def path(self, place: str) -> str:
        """Returns a path of the mixture file, taken relative to the file."""
        if files.is_remote(place) or Path(place).is_absolute() or not self.folder:
            return place
        return files.join(self.folder, place)

    def body(self, source: SourceSpec) -> str:
        """Returns where a source's declaration is: a shipped name as it stands, a path relative to the file."""
        name = source.declaration
        return name if not name or NAME_PATTERN.fullmatch(name) else self.path(name)


def _check_weight(weight: float, who: str) -> None:
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{who}: a weight must be a finite number, at least 0, got {weight}")


def read_mixture(path: str) -> MixtureSpec:
    """Reads a mixture file.

    Raises:
        ConfigError: not there, not YAML, an unknown key, or weights that make no mixture.
    """
    data, origin = load_extended(path)
    if "folder" in data:
        raise ConfigError(f"{origin}: unknown key 'folder'")
    if "tiers" not in data:
        raise ConfigError(f"{origin}: a mixture needs 'tiers' with base, middle or top")
    folder = origin.rpartition("/")[0] or "."
    return from_dict(MixtureSpec, {**data, "folder": folder}, origin)


def with_weights(spec: MixtureSpec, weights: Mapping[str, float]) -> MixtureSpec:
    """Returns the mixture with other shares of samples, without the temperature, caps and schedule of the first.

    Args:
        spec: a mixture.
        weights: share of samples by source, relative to each other, rounded to 1e-9; what is not named gets none.

    Raises:
        ConfigError: a name that the mixture does not have, or weights that are none.
    """
    names = [name for tier in spec.tiers.values() for name in tier.sources]
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"no source '{name}' in the mixture{nearest(name, names)}; it has {', '.join(names)}")
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"source '{name}': a weight must be a finite number, at least 0, got {weight}")
    total = sum(weights.values())
    if total <= 0:
        raise ConfigError("a mixture needs a source with a weight above 0")
    share = {name: round(weights.get(name, 0.0) / total, 9) for name in names}
    tiers = {}
    for tier, old in spec.tiers.items():
        inner = round(sum(share[name] for name in old.sources), 9)
        # A tier without a share keeps its weights: nothing of it is drawn.
        sources = {n: replace(s, weight=share[n]) if inner else s for n, s in old.sources.items()}
        tiers[tier] = replace(old, weight=inner, sources=sources)
    plain: dict[str, Any] = {"unit": "samples", "alpha": 0.0, "max_epochs": 0.0, "budget_samples": 0}
    return replace(spec, tiers=tiers, schedule=[], schedule_batch=0, **plain)


_DECIDES_NOTHING = ("folder", "cache_mb", "shard_cache_mb", "max_bad_share")


def describe(spec: MixtureSpec) -> dict[str, Any]:
    """Returns what of a spec decides the batches, without where the file lies."""
    from pyramid.config import to_dict

    data = to_dict(spec)
    for tier in data["tiers"].values():
        for source in tier["sources"].values():  # One that says nothing of bodies has the digest that it always had.
            for name in ("declaration", "actions"):
                if not source[name]:
                    del source[name]
            if source["state"]:
                del source["state"]
    # A mixture without has the digest that it always had.
    for name, without in (("future_s", 0.0), ("state_history", 1), ("state_gap_s", 0.0)):
        if data[name] == without:
            del data[name]
    return {key: value for key, value in data.items() if key not in _DECIDES_NOTHING}
