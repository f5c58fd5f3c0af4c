"""What stands between the world and the networks: texts to ids, physical units to normalised values and back.

It holds no weights. Which statistics it is given is the mixture's matter; the networks are in `vla.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from pyramid.errors import ConfigError, nearest
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment
from vla.text import encode_texts

__all__ = ["BodyStatistics", "Processor", "denormalize", "normalize", "present", "read_bodies"]


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
        self.embodiment.check_statistics(self.state, self.action)

    def encode_state(self, state: Tensor) -> Tensor:
        """Maps states float [B, S], physical units, to what a network is given: normalised, [B, E].

        States of a history, [B, H, S], each for itself: [B, H, E].
        """
        if self.state is None:
            return state[..., :0]
        known = state if self.embodiment.codec is None else _like(self.embodiment.encode_state(_array(state)), state)
        return _padded(normalize(self.state, known), self.embodiment.network.state_dim)

    def encode_action(self, action: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps action chunks to what a network is taught.

        Args:
            action: float [B, T, D], physical units.
            mask: bool [B, T, D]: False for padding.
            state: float [B, S], physical units, at the chunks' starts; of a history [B, H, S] the last is taken.

        Returns:
            Normalised actions float [B, T, E], and their mask bool [B, T, E].

        Raises:
            DataError: values that are not finite, or delta or relative actions without a state.
        """
        codec, sizes = self.embodiment.codec, self.embodiment.network
        if codec is None:
            taught = normalize(self.action, action)
            return _padded(taught, sizes.action_dim, sizes.horizon), _padded(mask, sizes.action_dim, sizes.horizon)
        keep: NDArray[np.bool_] = mask.cpu().numpy()
        encoded = codec.encode_action(_array(action), _array(present(state)), np.asarray(keep.any(-1)))
        taught, counted = normalize(self.action, _like(encoded, action)), torch.from_numpy(codec.encode_mask(keep))
        both = (taught, counted.to(mask.device))
        return _padded(both[0], sizes.action_dim, sizes.horizon), _padded(both[1], sizes.action_dim, sizes.horizon)

    def decode_action(self, action: Tensor, state: Tensor | None) -> Tensor:
        """Maps a network's actions [B, T, E] to float32 [B, T, D]; these and ``state`` [B, S] in physical units.

        Of a history [B, H, S] the last state is taken.

        Raises:
            DataError: delta or relative actions without a state.
        """
        physical = denormalize(self.action, action.float()[..., : self.embodiment.horizon, : self.action.width])
        if self.embodiment.codec is None:
            return physical
        known = None if state is None else _array(present(state))
        return _like(self.embodiment.decode_action(_array(physical), known), physical)

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
        """Encodes and normalises states float32 [B, S] or [B, H, S]; an embodiment without state gives [B, 0]."""
        return self.body(embodiment).encode_state(state)


def present(state: Tensor) -> Tensor:
    """Returns the present states [B, S] of [B, S] or of histories [B, H, S], whose last they are."""
    return state[:, -1] if state.ndim == 3 else state


def _padded(x: Tensor, width: int, steps: int = 0) -> Tensor:
    """Returns [..., T, D] with zeros up to so many dimensions, and steps if more are given."""
    missing = max(steps - x.shape[-2], 0) if steps else 0
    more = width - x.shape[-1]
    return torch.nn.functional.pad(x, (0, more, 0, missing)) if more or missing else x


def normalize(normalizer: Normalizer, x: Tensor) -> Tensor:
    """Does to a float tensor [..., D] what `Normalizer.normalize` does to an array, on the tensor's device."""
    center, scale = _tensors(normalizer, x)
    constant = scale == 0
    out = torch.where(constant, torch.zeros_like(x), (x - center) / torch.where(constant, 1.0, scale))
    return _halved(normalizer, _sided(normalizer, _limited(normalizer.clipped, out)))


def denormalize(normalizer: Normalizer, x: Tensor) -> Tensor:
    """Does to a float tensor [..., D] what `Normalizer.denormalize` does to an array, on the tensor's device."""
    center, scale = _tensors(normalizer, x)
    return _halved(normalizer, _sided(normalizer, _limited(normalizer.bounds, x)) * scale + center)


def _limited(dims: NDArray[np.bool_], x: Tensor) -> Tensor:
    return torch.where(_flags(dims, x), x.clamp(-1, 1), x) if dims.any() else x


def _halved(normalizer: Normalizer, x: Tensor) -> Tensor:
    return torch.where(_flags(normalizer.halved, x), (x > 0.5).to(x), x) if normalizer.halves else x


def _sided(normalizer: Normalizer, x: Tensor) -> Tensor:
    if not normalizer.switches:
        return x
    on_off = _flags(normalizer.switched & (normalizer.scale != 0), x)
    return torch.where(on_off, torch.where(x < 0, -1.0, 1.0).to(x), x)


def _flags(values: NDArray[np.bool_], like: Tensor) -> Tensor:
    return torch.from_numpy(values.copy()).to(like.device)


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.detach().float().cpu().numpy()


def _like(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)


def _tensors(normalizer: Normalizer, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(normalizer.center).to(like), torch.as_tensor(normalizer.scale).to(like)
