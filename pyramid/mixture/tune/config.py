"""Options of `pyramid mix tune`: the method, its budget, and what counts as better."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["regress", "dro", "halving"]
Prior = Literal["file", "size", "uniform"]
LawName = Literal["log_ridge", "polynomial", "gp", "mixing_law", "lightgbm"]
LAW_NAMES: tuple[LawName, ...] = ("log_ridge", "polynomial", "gp", "mixing_law", "lightgbm")


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Which mixtures are tried."""

    runs: int = 0
    """Mixtures in the design, the fixed ones included; 0 takes eight a source up to 48, and never less than three."""
    prior: Prior = "uniform"
    """Centre of the Dirichlet draws: the file's shares, shares by size, or equal shares."""
    temperature: float = 0.5
    """Power that the prior's shares are raised to, in [0, 1]; 0 forgets them."""
    strengths: tuple[float, float] = (1.0, 8.0)
    """Smallest and largest mean Dirichlet parameter, > 0; small ones draw lopsided mixtures."""
    corner_share: float = 0.7
    """Share of the favoured source in the lopsided fixed mixtures, of which each source has one; in (0, 1)."""
    min_share: float = 0.0
    """Smallest share of a source, in [0, 1 / sources]; holds for the answer too."""
    max_share: float = 1.0
    """Largest share of a source, in [1 / sources, 1]; holds for the answer too."""
    max_shares: dict[str, float] = field(default_factory=dict)
    """Largest share by source; ``max_epochs`` of the mixture file limits them, too. Holds for the answer too."""

    def __post_init__(self) -> None:
        """Refuses a design that cannot be drawn."""
        low, high = self.strengths
        if not 0 < low <= high < math.inf:
            raise ValueError(f"strengths must be two numbers above 0 in rising order, got {self.strengths}")
        if self.runs < 0 or not 0 <= self.temperature <= 1 or not 0 < self.corner_share < 1:
            raise ValueError("runs must be at least 0, temperature in [0, 1], corner_share in (0, 1)")
        if not 0 <= self.min_share < self.max_share <= 1:
            raise ValueError(f"shares need 0 <= min < max <= 1, got {self.min_share} and {self.max_share}")


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """How losses are predicted from mixtures."""

    laws: tuple[LawName, ...] = LAW_NAMES
    """Regressors to choose from, per target."""
    folds: int = 5
    """Parts of the cross-validation, >= 2."""
    bootstrap: int = 40
    """Resampled fits that the answer and its intervals come from, >= 2."""
    level: float = 0.9
    """Nominal coverage of the intervals, in (0, 1)."""
    pool: int = 2000
    """Mixtures among which each search of a best one starts, >= 100."""

    def __post_init__(self) -> None:
        """Refuses numbers that no fit could use."""
        if self.folds < 2 or self.bootstrap < 2 or self.pool < 100 or not 0 < self.level < 1 or not self.laws:
            raise ValueError("need laws, folds >= 2, bootstrap >= 2, pool >= 100 and level in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class DROConfig:
    """Re-Mix: group distributionally robust optimisation over sources (arXiv 2408.14037)."""

    eta: float = 0.2
    """Step size of the exponentiated gradient, > 0."""
    smoothing: float = 0.05
    """Share of the prior mixed into the weights at every step, in [0, 1)."""
    prior: Prior = "size"
    """Weights at the start, which smoothing pulls to, and which the reference model is trained on."""
    mean: Literal["source", "nonzero", "all"] = "source"
    """How samples' excesses become a source's: their mean, clipped once; the mean of those above 0, as in the published
    code; or of all, each clipped. Noise in the labels looks like excess to the last two."""
    reference_floor: float = 0.01
    """Smallest share of a source in the reference model's training, in [0, 1)."""
    seeds: int = 2
    """Independent repetitions whose averaged weights are averaged, >= 1."""

    def __post_init__(self) -> None:
        """Refuses steps that cannot converge."""
        if self.eta <= 0 or not 0 <= self.smoothing < 1 or not 0 <= self.reference_floor < 1 or self.seeds < 1:
            raise ValueError("need eta > 0, smoothing and reference_floor in [0, 1), seeds >= 1")


@dataclass(frozen=True, kw_only=True)
class HalvingConfig:
    """Successive halving: many mixtures on a small budget, few on a large one (arXiv 1502.07943, 1603.06560)."""

    factor: int = 3
    """Budgets grow and candidates shrink by this, >= 2."""
    rungs: int = 3
    """Levels; the last has the whole budget, >= 1."""
    seeds: int = 1
    """Runs of a candidate in each rung, >= 1."""

    def __post_init__(self) -> None:
        """Refuses ladders without rungs."""
        if self.factor < 2 or self.rungs < 1 or self.seeds < 1:
            raise ValueError("need factor >= 2, rungs >= 1, seeds >= 1")


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """The curve of held-out loss against the hours of one source."""

    fractions: tuple[float, ...] = ()
    """Shares of a source's data that runs are made with, in (0, 1]; empty fits no curve."""
    seeds: int = 3
    """Runs of each, >= 1."""
    factor: float = 2.0
    """How many times a source's hours the prediction is for, > 1."""

    def __post_init__(self) -> None:
        """Refuses a curve through one point."""
        given = self.fractions
        if given and (not all(0 < f <= 1 for f in given) or len(set(given)) < 2):
            raise ValueError(f"fractions must be at least two different numbers in (0, 1], got {given}")
        if self.seeds < 1 or self.factor <= 1:
            raise ValueError("need seeds >= 1 and factor > 1")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How weights are chosen."""

    method: Method = "regress"
    """Regression over a design of runs, Re-Mix, or successive halving over the design's mixtures."""
    proxy: str = "vla"
    """Name of an installed proxy."""
    proxy_config: str = ""
    """Preset or YAML file that the proxy reads; empty leaves it to the proxy."""
    budget: int = 100
    """Steps of a proxy run, >= 1."""
    seed: int = 0
    """Decides the design, the seeds of the runs, the resampling."""
    targets: dict[str, float] = field(default_factory=dict)
    """Weight of each target in the mean; targets that are not named count nothing. Empty weighs all alike."""
    objective: Literal["mean", "worst"] = "mean"
    """What is made small: the weighted mean over the targets, or the largest of those with a weight."""
    confirm_seeds: int = 5
    """Fresh seeds on which the answer is compared with other mixtures, >= 2."""
    design: DesignConfig = field(default_factory=DesignConfig)
    """Which mixtures are tried (regress, halving)."""
    regress: RegressConfig = field(default_factory=RegressConfig)
    """How losses are predicted."""
    dro: DROConfig = field(default_factory=DROConfig)
    """Re-Mix."""
    halving: HalvingConfig = field(default_factory=HalvingConfig)
    """Successive halving."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """Curves over hours, around the chosen mixture."""

    def __post_init__(self) -> None:
        """Refuses budgets and targets that say nothing."""
        if self.budget < 1 or self.confirm_seeds < 2:
            raise ValueError(f"need budget >= 1 and confirm_seeds >= 2, got {self.budget} and {self.confirm_seeds}")
        weights = self.targets.values()
        if self.targets and (not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights)):
            raise ValueError(f"targets need weights of at least 0, one above 0, got {self.targets}")
