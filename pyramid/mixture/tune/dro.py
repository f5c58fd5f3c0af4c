"""Re-Mix: group DRO over sources on excess losses, by exponentiated gradient, with averaged weights.

Hejna et al., "Re-Mix: Optimizing Data Mixtures for Large Scale Imitation Learning" (arXiv 2408.14037), after DoReMi
(arXiv 2305.10429) and Sagawa et al. (arXiv 1911.08731). Training is the proxy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.mixture.tune.config import DROConfig
from pyramid.mixture.tune.proxy import ProxyRun, ReweightedProxy

_KEPT = 200


class GroupDRO:
    """The rule that turns excess losses into weights, step by step.

    Args:
        sources: names.
        prior: weights at the start, [K].
        config: step size, smoothing, kind of mean.
    """

    def __init__(self, sources: list[str], prior: NDArray[np.float64], config: DROConfig) -> None:
        self.sources, self.config = sources, config
        self.prior = prior / prior.sum()
        self.weights = self.prior.copy()
        self.history: list[NDArray[np.float64]] = []
        """Weights after each step."""

    def __call__(self, excess: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
        """Takes one step: ``w <- w exp(eta L) / sum``, smoothed towards the prior; L is the clipped mean excess.

        Args:
            excess: loss of the model less that of the reference, of each sample [n], by source; a source without
                samples in this step counts as without excess.
        """
        gain = np.array([self._mean(np.asarray(excess.get(name, ()), np.float64)) for name in self.sources])
        # The largest is taken off before the exponential; it cancels in the sum.
        raised = self.weights * np.exp(self.config.eta * (gain - gain.max()))
        pulled = self.config.smoothing
        self.weights = (1 - pulled) * raised / raised.sum() + pulled * self.prior
        self.history.append(self.weights)
        return dict(zip(self.sources, map(float, self.weights), strict=True))

    def _mean(self, excess: NDArray[np.float64]) -> float:
        finite = np.nan_to_num(excess, nan=0.0, posinf=1e6, neginf=-1e6)
        if self.config.mean == "source":
            return max(float(finite.mean()), 0.0) if len(finite) else 0.0
        kept = np.maximum(finite, 0.0)
        count = np.count_nonzero(kept) if self.config.mean == "nonzero" else len(kept)
        return float(kept.sum() / max(count, 1))

    def average(self) -> NDArray[np.float64]:
        """Returns the mean of the weights over all steps, [K]: the mixture that Re-Mix hands on."""
        return np.asarray(np.mean(self.history, axis=0) if self.history else self.prior)

    def drift(self) -> float:
        """Returns how far the mean weights of the last two quarters of the steps lie apart, largest over the sources.

        Published weights of Re-Mix still moved late in training; what has not settled should not be trusted.
        """
        quarter = len(self.history) // 4
        if not quarter:
            return 1.0
        last, before = self.history[-quarter:], self.history[-2 * quarter : -quarter]
        return float(np.abs(np.mean(last, 0) - np.mean(before, 0)).max())


def average_weights(
    proxy: ReweightedProxy, run: ProxyRun, config: DROConfig, prior: NDArray[np.float64]
) -> dict[str, Any]:
    """Trains a reference model, then a model under group DRO against it.

    Args:
        proxy: what is trained.
        run: the reference model's mixture, the budget of both models, and the seed.
        config: of the rule.
        prior: weights at the start, [K], in the order of ``run.weights``.

    Returns:
        ``weights`` (averaged, by source), ``drift``, and ``trace``: up to 200 of the steps' weights.
    """
    rule = GroupDRO(list(run.weights), prior, config)
    reference = proxy.reference(run)
    proxy.train_reweighted(reference, rule, budget=run.budget, seed=run.seed)
    steps = np.linspace(0, len(rule.history) - 1, min(_KEPT, len(rule.history))).astype(int)
    return {
        "weights": dict(zip(run.weights, map(float, rule.average()), strict=True)),
        "drift": rule.drift(),
        "trace": [[int(step) + 1, *map(float, rule.history[step])] for step in steps],
    }
