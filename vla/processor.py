"""What stands between the world and the networks: texts to ids, physical units to normalised values and back.

It holds no weights. Which statistics it is given is the mixture's matter; the networks are in `vla.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pyramid.errors import ConfigError, DataError, nearest
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment
from vla.text import encode_texts

__all__ = ["BodyStatistics", "Processor", "denormalize", "normalize", "read_bodies"]


@dataclass(frozen=True)
class BodyStatistics:
    """One declared embodiment with its normalisers."""

    embodiment: Embodiment
    """Sizes and rate."""
    state: Normalizer | None
    """For proprioception; None when the embodiment has none."""
    action: Normalizer
    """For actions."""

    def __post_init__(self) -> None:
        """Refuses normalisers of another size than the embodiment."""
        e = self.embodiment
        if len(self.action.center) != e.action_dim or (e.state_dim and self.state is None):
            raise DataError(f"embodiment '{e.name}': no statistics for its {e.state_dim} and {e.action_dim} dimensions")
        if self.state is not None and len(self.state.center) != e.state_dim:
            found = len(self.state.center)
            raise DataError(f"embodiment '{e.name}': state statistics have {found} dimensions, not {e.state_dim}")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        state = self.state.to_dict() if self.state is not None else None
        return {"embodiment": self.embodiment.to_dict(), "state": state, "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BodyStatistics:
        """Reads what `to_dict` wrote."""
        state = Normalizer.from_dict(data["state"]) if data["state"] is not None else None
        return cls(Embodiment(**data["embodiment"]), state, Normalizer.from_dict(data["action"]))


def read_bodies(
    embodiments: Mapping[str, Embodiment], statistics: Mapping[str, Mapping[str, Normalizer]]
) -> dict[str, BodyStatistics]:
    """Joins a mixture's embodiments with their normalisers, which have ``state`` only where there is a state.

    Videos without actions have no slot in a policy.
    """
    return {
        name: BodyStatistics(e, statistics[name].get("state"), statistics[name]["action"])
        for name, e in embodiments.items()
        if e.label != "video"
    }


class Processor:
    """Texts and physical values in, tensors out; and actions back into physical units.

    Args:
        tokenizer: from `vla.text`, or a published model's.
        max_text_tokens: length that texts are padded or cut to.
        bodies: the declared embodiments with their normalisers.
    """

    def __init__(self, tokenizer: Tokenizer, max_text_tokens: int, bodies: Mapping[str, BodyStatistics]) -> None:
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        self.bodies = dict(bodies)

    def body(self, embodiment: str | None) -> BodyStatistics:
        """Returns a declared embodiment; None names the only one.

        Raises:
            ConfigError: it is not declared, or None and there are several.
        """
        known = sorted(self.bodies)
        if embodiment is None:
            if len(known) != 1:
                raise ConfigError(f"this policy has several embodiments; name one of {', '.join(known)}")
            return self.bodies[known[0]]
        if embodiment not in self.bodies:
            declared = f"(declared: {', '.join(known)}){nearest(embodiment, known)}"
            raise ConfigError(f"embodiment '{embodiment}' is not declared by this policy {declared}")
        return self.bodies[embodiment]

    def text(self, texts: Sequence[str], *, trim: bool = False) -> tuple[Tensor, Tensor]:
        """Encodes texts.

        Args:
            texts: B texts.
            trim: cut columns that are padding in every row; saves time and changes no result.

        Returns:
            Ids int64 [B, T] and mask bool [B, T], True where a token is.
        """
        ids, mask = encode_texts(self.tokenizer, texts, self.max_text_tokens)
        length = max(int(mask.sum(1).max()), 1) if trim else self.max_text_tokens
        return torch.from_numpy(ids[:, :length]), torch.from_numpy(mask[:, :length])

    def state(self, state: Tensor, embodiment: str) -> Tensor:
        """Normalises states float32 [B, S]; an embodiment without state gives [B, 0]."""
        normalizer = self.body(embodiment).state
        return state[:, :0] if normalizer is None else normalize(normalizer, state)


def normalize(normalizer: Normalizer, x: Tensor) -> Tensor:
    """Does to a float tensor [..., D] what `Normalizer.normalize` does to an array, on the tensor's device."""
    center, scale = _tensors(normalizer, x)
    constant = scale == 0
    out = torch.where(constant, torch.zeros_like(x), (x - center) / torch.where(constant, 1.0, scale))
    return out.clamp(-1, 1) if normalizer.clip else out


def denormalize(normalizer: Normalizer, x: Tensor) -> Tensor:
    """Does to a float tensor [..., D] what `Normalizer.denormalize` does to an array, on the tensor's device."""
    center, scale = _tensors(normalizer, x)
    return x * scale + center


def _tensors(normalizer: Normalizer, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(normalizer.center).to(like), torch.as_tensor(normalizer.scale).to(like)
