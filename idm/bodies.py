"""What a model folder says of each embodiment: statistics and groups of its actions, statistics of its states.

It is written when a model is trained and read by whoever labels or measures with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idm.data import Demonstration, standardised
from idm.groups import ActionGroup, groups_from, read_groups
from idm.joining import JoinRule
from pyramid.errors import ConfigError, DataError, nearest
from pyramid.normalize import Normalizer

__all__ = ["Body", "describe_embodiments"]


@dataclass(frozen=True, kw_only=True)
class Body:
    """One embodiment as a trained model knows it; actions in physical units."""

    normalizer: Normalizer
    """Of its actions."""
    mean: NDArray[np.float32]
    """float32 [D]: mean training action."""
    std: NDArray[np.float32]
    """float32 [D]: spread of the training actions."""
    low: NDArray[np.float32]
    """float32 [D]: least training action."""
    high: NDArray[np.float32]
    """float32 [D]: greatest training action."""
    groups: tuple[ActionGroup, ...]
    """Named stretches of the action; one of all where no `modality.json` was given."""
    states: Normalizer | None
    """Of its states; None if the demonstrations had none."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Body:
        """Reads what `describe_embodiments` wrote.

        Raises:
            DataError: a model of a former version.
        """
        try:
            mean, std, low, high = (
                np.asarray(about[f"action_{name}"], np.float32) for name in ("mean", "std", "low", "high")
            )
            states = about["states"]
            return cls(
                normalizer=Normalizer.from_dict(about["normaliser"]),
                mean=mean,
                std=std,
                low=low,
                high=high,
                groups=tuple(groups_from(about["groups"])),
                states=None if states is None else Normalizer.from_dict(states),
            )
        except KeyError as error:
            raise DataError(f"the model says nothing of {error} of its embodiments; train it again") from error

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Bool [D]: dimensions that are not constant in training."""
        return self.normalizer.scale > 0

    @property
    def rule(self) -> JoinRule:
        """How its votes join."""
        return JoinRule(self.groups, self.normalizer, self.low, self.high)

    def state_of(self, states: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """Standardises states, float32 [T, S], NaN rows where unknown; None without statistics or states."""
        return None if states is None or self.states is None else standardised(self.states, states)


def describe_embodiments(
    demonstrations: Sequence[Demonstration],
    normalizers: Mapping[str, Normalizer],
    states: Mapping[str, Normalizer],
    modality: str | Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Returns what a model folder keeps of each embodiment, as plain data.

    Args:
        demonstrations: the training clips.
        normalizers: of their actions.
        states: of their states, where they have any.
        modality: paths of `modality.json`, each with ``NAME=`` before it if there are several embodiments.

    Raises:
        ConfigError: an embodiment that is not there, or a path without a name among several.
    """
    paths = _by_name(modality, sorted(normalizers))
    out = {}
    for name, normalizer in normalizers.items():
        own = [d for d in demonstrations if d.embodiment == name]
        actions = np.concatenate([d.action[:-1] for d in own])
        wide = actions.astype(np.float64)
        whole = [ActionGroup(name="action", start=0, end=actions.shape[1])]
        groups = read_groups(paths[name], actions) if name in paths else whole
        out[name] = {
            "action_dim": actions.shape[1],
            "state_dim": len(states[name].center) if name in states else 0,
            "normaliser": normalizer.to_dict(),
            "action_mean": wide.mean(0).tolist(),
            "action_std": wide.std(0).tolist(),
            "action_low": wide.min(0).tolist(),
            "action_high": wide.max(0).tolist(),
            "groups": [group.to_dict() for group in groups],
            "states": states[name].to_dict() if name in states else None,
            "demonstrations": len(own),
            "grid": any(d.grid for d in own),
        }
    return out


def _by_name(modality: str | Sequence[str], names: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in [modality] if isinstance(modality, str) else modality:
        name, mark, path = entry.partition("=")
        if not mark:
            if len(names) > 1:
                raise ConfigError(f"'{entry}' is the modality.json of which of {', '.join(names)}? Write NAME=PATH")
            name, path = names[0], entry
        if name not in names:
            raise ConfigError(f"no demonstrations of '{name}'{nearest(name, names)}; there are {', '.join(names)}")
        found[name] = path
    return found
