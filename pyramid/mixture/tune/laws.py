"""Regressors from a mixture to a held-out loss: log-ridge, polynomial, Gaussian process, mixing law, LightGBM.

Which of them is used is decided by cross-validation in `pyramid.mixture.tune.fit`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import MissingDependencyError
from pyramid.mixture.tune.config import LawName

Array = NDArray[np.float64]
LIGHTGBM_FROM = 40
"""Fewest runs from which gradient boosting is tried; below it was far behind on RegMix's published runs."""
_EPSILON = 0.01
"""Added to shares before their logarithm is taken, so that a source may be left out."""


@dataclass(frozen=True)
class Fit:
    """A fitted regressor."""

    predict: Callable[[Array], Array]
    """Losses [N] of mixtures [N, K]."""
    start: Any = None
    """What makes the next fit to similar data quick."""


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-5, 2, 15)))


def fit_log_ridge(x: Array, y: Array, start: Any = None) -> Fit:
    """Fits log loss as a ridge regression on the logarithms of the shares: a product of powers.

    Raises:
        ValueError: a loss that is not above 0.
    """
    if y.min() <= 0:
        raise ValueError("log-ridge needs losses above 0")
    model = _ridge().fit(np.log(x + _EPSILON), np.log(y))
    return Fit(lambda new: np.exp(model.predict(np.log(new + _EPSILON))))


def fit_polynomial(x: Array, y: Array, start: Any = None) -> Fit:
    """Fits a quadratic in the square roots of the shares, by ridge regression; of the log loss where that exists."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    there, back = _scale(y)
    model = make_pipeline(PolynomialFeatures(2, include_bias=False), _ridge()).fit(np.sqrt(x), there)
    return Fit(lambda new: back(np.asarray(model.predict(np.sqrt(new)))))


def _scale(y: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Returns losses on a logarithmic scale if all are above 0, else as they are, and the way back."""
    if y.min() <= 0:
        return y, lambda z: z
    return np.log(y), lambda z: np.exp(np.minimum(z, 700.0))


def fit_gp(x: Array, y: Array, start: Any = None) -> Fit:
    """Fits a Gaussian process with a squared-exponential kernel and noise on the square roots of the shares.

    It predicts the log loss where that exists.

    Args:
        x: shares [N, K].
        y: losses [N].
        start: a fitted kernel, which is then kept as it is.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    there, back = _scale(y)
    fresh = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(0.5, (5e-2, 2e1)) + WhiteKernel(1e-2, (1e-6, 1e1))
    # Two rows of a resampled design may be one and the same; jitter keeps their matrix regular.
    options = {"kernel": start or fresh, "normalize_y": True, "alpha": 1e-8}
    model = GaussianProcessRegressor(**options, **({"optimizer": None} if start else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A length scale at its bound is an answer, not a failure.
        model.fit(np.sqrt(x), there)
    return Fit(lambda new: back(np.asarray(model.predict(np.sqrt(new)))), model.kernel_)


def fit_mixing_law(x: Array, y: Array, start: Any = None) -> Fit:
    """Fits the exponential law of data mixing, ``loss = c + exp(sum_k t_k share_k)`` (arXiv 2403.16952).

    The law's factor is part of t, since shares sum to 1.
    """
    from scipy.optimize import least_squares

    scale = max(float(y.max() - y.min()), 1e-12)
    z = (y - y.min()) / scale

    def residuals(p: Array) -> Array:
        # A little ridge, so that a source that hardly varies cannot run away.
        return np.concatenate([p[0] + np.exp(np.clip(x @ p[1:], -30, 30)) - z, 1e-3 * p[1:]])

    def first(floor: float) -> Array:
        slopes = np.linalg.lstsq(x, np.log(z + floor), rcond=None)[0]
        return np.concatenate([[-floor], slopes])

    starts = [start] if start is not None else [first(floor) for floor in (0.05, 0.5, 3.0)]
    tried = [least_squares(residuals, p, max_nfev=200) for p in starts]
    best = min(tried, key=lambda found: float(found.cost)).x
    return Fit(lambda new: y.min() + scale * (best[0] + np.exp(np.clip(new @ best[1:], -30, 30))), best)


def fit_lightgbm(x: Array, y: Array, start: Any = None) -> Fit:
    """Fits gradient-boosted trees, small and slow-learning (RegMix's choice, arXiv 2407.01492).

    Raises:
        ValueError: fewer than `LIGHTGBM_FROM` runs.
    """
    if len(y) < LIGHTGBM_FROM * 0.75:
        raise ValueError(f"trees need {LIGHTGBM_FROM} runs")
    import lightgbm

    options: dict[str, Any] = {"num_leaves": 5, "min_child_samples": 4, "learning_rate": 0.05, "n_estimators": 150}
    quiet: dict[str, Any] = {"n_jobs": 1, "verbose": -1, "deterministic": True, "random_state": 0}
    model = lightgbm.LGBMRegressor(**options, **quiet).fit(x, y)
    return Fit(lambda new: np.asarray(model.booster_.predict(new)))


LAWS: dict[LawName, Callable[[Array, Array, Any], Fit]] = {
    "log_ridge": fit_log_ridge,
    "polynomial": fit_polynomial,
    "gp": fit_gp,
    "mixing_law": fit_mixing_law,
    "lightgbm": fit_lightgbm,
}


def require_libraries(*, load: bool = True) -> None:
    """Refuses, before any run is paid for, a machine on which nothing could be fitted or drawn.

    Args:
        load: import them, which takes seconds; False only looks whether they are there.

    Raises:
        MissingDependencyError: the extra ``tune`` is not installed.
    """
    for name in ("sklearn", "lightgbm", "matplotlib", "scipy"):
        try:
            if load:
                __import__(name)
            elif importlib.util.find_spec(name) is None:
                raise ImportError(f"No module named '{name}'")
        except (ImportError, OSError) as error:
            raise MissingDependencyError(
                f"'pyramid mix tune' needs {name}: pip install 'latent-pyramid[tune]' ({error})"
            ) from error
