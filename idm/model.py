"""The inverse dynamics model: frames of a window in, the window's actions out, networks of their own per embodiment.

Which windows it sees is left to `idm.data`, joining its predictions to `idm.windows`. Shapes: B windows, T frames,
K frames of a window, V views, S side, H horizon, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from idm.config import IDMConfig
from idm.heads import FlowHead, LinearHead, Regressor
from idm.vision import build_eyes, split_views
from pyramid.errors import ConfigError
from pyramid.nn.embodiment import EmbodimentMLP
from pyramid.rng import torch_generator

__all__ = ["Confidence", "InverseDynamicsModel", "Predictor", "augmented"]

Dims = Mapping[str, tuple[int, int]]
_STATE_WIDTH = 64


class Confidence(nn.Module):
    """What calibration found out about one embodiment; saved with the model, never trained.

    Args:
        horizon: H.
        dim: D.
    """

    def __init__(self, horizon: int, dim: int) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.ones(2, dim), requires_grad=False)
        """float32 [2, D]: error of a single vote; of several joined ones beyond their variance; normalised units."""
        self.weights = nn.Parameter(torch.ones(horizon, dim), requires_grad=False)
        """float32 [H, D]: what a vote of each step of a window counts, > 0."""
        self.factor = nn.Parameter(torch.ones(dim), requires_grad=False)
        """float32 [D]: what the standard deviation is multiplied with so that the 90 % interval holds 90 %."""


class Predictor(Protocol):
    """A network that labels: ours, or a published one."""

    def look(self, pictures: Tensor) -> Tensor:
        """See `InverseDynamicsModel.look`."""
        ...

    def confidence(self, embodiment: str) -> Confidence:
        """See `InverseDynamicsModel.confidence`."""
        ...

    def __call__(self, looked: Tensor, present: Tensor, state: Tensor | None, embodiment: str) -> Tensor:
        """See `InverseDynamicsModel.forward`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `nn.Module.parameters`."""
        ...

    def eval(self) -> Self:
        """See `nn.Module.eval`."""
        ...

    def compile(self) -> None:
        """See `nn.Module.compile`."""
        ...


class InverseDynamicsModel(nn.Module):
    """Frames of a window, and maybe a state, to its actions; no language.

    Args:
        config: sizes of windows and network.
        dims: embodiment -> (action dimension, state dimension or 0); each gets networks of its own.
    """

    def __init__(self, config: IDMConfig, dims: Dims) -> None:
        super().__init__()
        self.config, self.horizon = config, config.windows.horizon
        size, head, n_frames = config.model, config.model.head, len(config.windows.frames)
        flow = head.kind == "flow"
        self.eyes = build_eyes(size, config.windows, head.width if flow else None)
        self.actions = {name: action for name, (action, _) in dims.items()}
        self.states = {name: state for name, (_, state) in dims.items() if state and size.state != "none"}
        d_state = head.width if flow else _STATE_WIDTH
        if size.state != "none":
            self.state_encoder = EmbodimentMLP({name: (n, d_state) for name, n in self.states.items()}, d_state)
            self.unknown_state = nn.Parameter(torch.zeros(d_state))
        self.head = self._head(n_frames + d_state * (size.state != "none"), dims)
        self.known = nn.ModuleDict({f"for_{name}": Confidence(self.horizon, n) for name, n in self.actions.items()})

    def _head(self, n_extra: int, dims: Dims) -> Regressor | FlowHead | LinearHead:
        """Builds what makes actions; ``n_extra``: numbers that it reads beside the tokens."""
        head = self.config.model.head
        if head.kind == "flow":
            return FlowHead.of(head, self.actions, self.horizon)
        count, width = self.eyes.count, self.eyes.width
        if head.kind == "linear":
            return LinearHead(head.ridge, d_in=count * width + n_extra, dims=self.actions, horizon=self.horizon)
        return Regressor(
            head,
            n_tokens=count,
            d_token=width,
            n_extra=n_extra,
            dims={name: (action, state if head.auxiliary else 0) for name, (action, state) in dims.items()},
            horizon=self.horizon,
            short=self.config.model.vision.kind == "keypoints",
        )

    @property
    def draws(self) -> int:
        """Predictions per window: 1 where no noise is drawn."""
        return self.config.model.head.samples if isinstance(self.head, FlowHead) else 1

    def confidence(self, embodiment: str) -> Confidence:
        """Returns what calibration found out about an embodiment."""
        return self.known[f"for_{embodiment}"]  # type: ignore[return-value]

    def look(self, pictures: Tensor) -> Tensor:
        """Sees packed pictures, uint8 [T, 3, P, P], one by one; what comes out has T rows for `forward`."""
        return self.eyes.look(split_views(pictures, self.config.model))

    def forward(self, looked: Tensor, present: Tensor, state: Tensor | None, embodiment: str) -> Tensor:
        """Predicts the actions of windows of one embodiment.

        Args:
            looked: rows that `look` gave, [B, K, ...], of the frames that `WindowConfig.frames` names.
            present: float32 [B, K], 1 for a frame that is there, 0 for one that is not.
            state: float32 [B, S], standardised; None if unknown.
            embodiment: a declared embodiment.

        Returns:
            float32 [draws, B, H, D], normalised units. The noise of a draw is the same for every window and process.
        """
        tokens, extra = self.context(looked, present, state, embodiment)
        if not isinstance(self.head, FlowHead):
            return self.head.actions(self.head.shared(tokens, extra), embodiment)[None]
        context = self.head.encode(tokens)
        return torch.stack(
            [self.head.sample(context, self.noise(draw, embodiment, tokens), embodiment) for draw in range(self.draws)]
        ).float()

    def noise(self, draw: int, embodiment: str, like: Tensor) -> Tensor:
        """Returns where draw number ``draw`` starts, float [B, H, D]; the second of two is the first's mirror image."""
        generator = torch_generator(0, "idm-draw", draw // 2)
        one = torch.randn(self.horizon, self.actions[embodiment], generator=generator)
        return (-one if draw % 2 else one).to(like).expand(len(like), -1, -1)

    def context(self, looked: Tensor, present: Tensor, state: Tensor | None, embodiment: str) -> tuple[Tensor, Tensor]:
        """Returns the tokens of windows, float [B, L, C], and the regressor's further numbers, float [B, E]."""
        tokens = self.eyes.join(looked, present)
        if self.config.model.state == "none":
            return tokens, present
        told = self._state(state, embodiment, len(tokens))
        if isinstance(self.head, FlowHead):
            return torch.cat([tokens, told[:, None].to(tokens)], dim=1), present
        return tokens, torch.cat([present, told], dim=1)

    def _state(self, state: Tensor | None, embodiment: str, count: int) -> Tensor:
        unknown = self.unknown_state.expand(count, -1)
        if state is None or embodiment not in self.states:
            if self.config.model.state == "required":
                raise ConfigError(f"the model needs the state of '{embodiment}'; model.state=optional does without it")
            return unknown
        # A row without a state is all NaN.
        there = torch.isfinite(state).all(1, keepdim=True)
        return torch.where(there, self.state_encoder(torch.nan_to_num(state), embodiment), unknown)


def augmented(frames: Tensor, shift_px: int, gain: float, generator: torch.Generator) -> Tensor:
    """Shifts and brightens each window, all its frames alike, so that the motion in it stays the same.

    Args:
        frames: uint8 or float [B, K, V, 3, S, S], 0 to 255.
        shift_px: largest shift to each side, pixels; what enters at the border repeats the border.
        gain: largest relative change of brightness.
        generator: source of randomness, on the CPU.

    Returns:
        float32 [B, K, V, 3, S, S], 0 to 255.
    """
    count, side = len(frames), frames.shape[-1]
    factors = 1 + gain * (2 * torch.rand(count, generator=generator) - 1)
    out = frames.float() * factors.to(frames.device)[:, None, None, None, None, None]
    if shift_px:
        corners = torch.randint(0, 2 * shift_px + 1, (count, 2), generator=generator).tolist()
        edges = nn.functional.pad(out.flatten(0, 2), (shift_px,) * 4, mode="replicate")
        edges = edges.view(*frames.shape[:4], *edges.shape[-2:])
        out = torch.stack(
            [window[..., y : y + side, x : x + side] for window, (y, x) in zip(edges, corners, strict=True)]
        )
    return out.clamp(0, 255)
