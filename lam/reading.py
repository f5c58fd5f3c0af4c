"""What can be read from the latents of held-out pairs: actions, another body's actions, the camera, verbs.

The probes themselves are in `lam.probes`. Everything is fitted on clips of one split and scored on another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lam import metrics
from lam.camera import moved_back
from lam.held_out import Pairs
from lam.model import LatentActionModel
from lam.probes import ProbeData, global_shift, knn_accuracy, mean_score, mlp_probe, ridge_probe
from lam.result import Probe, Transfer, Verbs
from lam.run import Rows, run_pairs

__all__ = ["Side", "action_probes", "camera_measures", "transfer_probes", "verb_accuracy"]

_CAMERA_STD_PX = 0.25
"""Spread of the global shift below which there is no camera motion to find."""
_ROWS = 32
"""Fewest rows on either side of a probe."""
_CLIPS = 4
"""Fewest clips that a probe is fitted on: of fewer it learns the clips."""
_NEIGHBOURS = 5


class Side(NamedTuple):
    """Pairs of one split and what the model says of them."""

    pairs: Pairs
    """The pairs."""
    rows: Rows
    """Their latents and codes."""

    def latent(self) -> NDArray[np.float32]:
        """Returns the latents, float32 [P, N * D]."""
        return self.rows.latent.reshape(len(self.rows.latent), -1)

    def one_hot(self, n_codes: int) -> NDArray[np.float32] | None:
        """Returns the codes, float32 [P, N * K] of 0 and 1; None for a continuous bottleneck."""
        if self.rows.codes is None:
            return None
        return np.eye(n_codes, dtype=np.float32)[self.rows.codes].reshape(len(self.rows.codes), -1)

    def known(self, embodiment: str) -> NDArray[np.bool_]:
        """Returns which pairs show an embodiment and have an action, bool [P]."""
        both = zip(self.pairs.embodiments, self.pairs.actions, strict=True)
        return np.array([name == embodiment and action is not None for name, action in both], bool)

    def data(self, x: NDArray[np.float32], embodiment: str) -> ProbeData:
        """Returns ``x`` beside the actions of an embodiment."""
        rows = self.known(embodiment)
        y = [action for action, used in zip(self.pairs.actions, rows, strict=True) if used and action is not None]
        return ProbeData(x[rows], np.stack(y), self.pairs.clip[rows])


def action_probes(fitted: Side, held: Side, n_codes: int) -> dict[str, Probe]:
    """Returns the probes of every embodiment that has enough pairs with actions in both splits."""
    return {name: _action_probe(fitted, held, name, n_codes) for name in _both(fitted, held)}


def _both(fitted: Side, held: Side) -> list[str]:
    able = _able(held)
    return [name for name in _able(fitted, _CLIPS) if name in able]


def _able(side: Side, n_clips: int = 1) -> list[str]:
    """Returns the embodiments with enough pairs that have an action, of at least so many clips."""
    rows = {name: side.known(name) for name in sorted(set(side.pairs.embodiments))}
    return [n for n, own in rows.items() if own.sum() >= _ROWS and len(np.unique(side.pairs.clip[own])) >= n_clips]


def _action_probe(fitted: Side, held: Side, name: str, n_codes: int) -> Probe:
    latent = fitted.data(fitted.latent(), name), held.data(held.latent(), name)
    linear, mlp = ridge_probe(*latent), mlp_probe(*latent)
    codes = [side.one_hot(n_codes) for side in (fitted, held)]
    codes_linear, codes_mlp = None, None
    if codes[0] is not None and codes[1] is not None:
        both = fitted.data(codes[0], name), held.data(codes[1], name)
        codes_linear, codes_mlp = ridge_probe(*both), mlp_probe(*both)
    return Probe(
        linear=mean_score(linear),
        mlp=mean_score(mlp),
        codes_linear=mean_score(codes_linear or []),
        codes=mean_score(codes_mlp or []),
        per_dimension=linear,
        mlp_per_dimension=mlp,
        codes_linear_per_dimension=codes_linear,
        codes_per_dimension=codes_mlp,
    )


def transfer_probes(fitted: Side, held: Side) -> list[Transfer]:
    """Scores the probe of each embodiment on every other one whose actions have as many dimensions.

    Bodies look different, so their latents are centred and scaled by their own moments first; that needs no action.
    """
    found = []
    for source in _able(fitted, _CLIPS):
        own = _standardised(fitted, source)
        for target in _able(held):
            other = _standardised(held, target)
            if target != source and other.y.shape[1] == own.y.shape[1]:
                linear, mlp = ridge_probe(own, other), mlp_probe(own, other)
                found.append(
                    Transfer(
                        fitted_on=source,
                        scored_on=target,
                        linear=mean_score(linear),
                        mlp=mean_score(mlp),
                        per_dimension=linear,
                        mlp_per_dimension=mlp,
                    )
                )
    return found


def _standardised(side: Side, embodiment: str) -> ProbeData:
    whole = side.data(side.latent(), embodiment)
    spread = whole.x.std(0)
    return whole._replace(x=(whole.x - whole.x.mean(0)) / np.where(spread > 1e-8, spread, 1))


def camera_measures(network: LatentActionModel, fitted: Side | None, held: Side) -> dict[str, Any]:
    """Returns ``camera_r2``, ``camera_share`` and ``camera_gap``: what the latent has to do with the camera's motion.

    None where the camera stands still; of the first two also without training clips.
    """
    found: dict[str, Any] = dict.fromkeys(("camera_r2", "camera_share", "camera_gap"))
    shift = global_shift(held.pairs.first, held.pairs.second)
    if shift.std(0).max() <= _CAMERA_STD_PX:
        return found
    found["camera_gap"] = metrics.psnr_gap(held.rows.error, _followed(network, held, shift))
    if fitted is None:
        return found
    latents = [ProbeData(side.latent(), side.latent(), side.pairs.clip) for side in (fitted, held)]
    shifts = [global_shift(fitted.pairs.first, fitted.pairs.second), shift]
    read = ridge_probe(*(data._replace(y=y) for data, y in zip(latents, shifts, strict=True)))
    caused = mlp_probe(*(data._replace(x=x) for data, x in zip(latents, shifts, strict=True)))
    spread = held.latent().var(0)
    explained = sum((r2 or 0.0) * float(v) for r2, v in zip(caused, spread, strict=True))
    return {**found, "camera_r2": mean_score(read), "camera_share": explained / max(float(spread.sum()), 1e-12)}


def _followed(network: LatentActionModel, held: Side, shift: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the error of the first frame moved as the camera moved, in the second's place: float64 [P]."""
    moved, _ = moved_back(held.pairs.first.float(), torch.from_numpy(-shift))
    first = moved.round().to(torch.uint8)
    return run_pairs(network, first, held.pairs.second, context=held.pairs.context).copy_error


def verb_accuracy(fitted: Side, held: Side) -> Verbs | None:
    """Names each held-out clip's verb by its nearest neighbours among the training clips; None without verbs."""
    sides = [_clips(side) for side in (fitted, held)]
    if min(len(set(labels)) for _, labels in sides) < 2:
        return None
    (x, labels), (new, truth) = sides
    counts = [labels.count(label) for label in truth]
    most = max(set(labels), key=labels.count)
    return Verbs(
        accuracy=knn_accuracy(x, labels, new, truth, neighbours=_NEIGHBOURS),
        chance=float(np.mean([label == most for label in truth])),
        verbs=len(set(labels)),
        clips=len(truth),
        unseen=float(np.mean([count == 0 for count in counts])),
    )


def _clips(side: Side) -> tuple[NDArray[np.float32], list[str]]:
    """Returns one row per clip with a verb: mean and spread of its latents."""
    latent, rows, labels = side.latent(), [], []
    for clip in np.unique(side.pairs.clip):
        places = np.flatnonzero(side.pairs.clip == clip)
        verb = side.pairs.verbs[places[0]]
        if verb:
            rows.append(np.concatenate([latent[places].mean(0), latent[places].std(0)]))
            labels.append(verb)
    return np.array(rows, np.float32).reshape(len(rows), 2 * latent.shape[1]), labels
