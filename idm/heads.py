"""What makes actions of the tokens of a window: one pass, a linear map, or flow matching with a diffusion transformer.

Seeing is left to `idm.vision`. Facts of the flow head are those of the public Apache-2.0 code of GR00T-Dreams (see
DreamGen, arXiv 2505.12705); none of it is used. The context is encoded once per window here, in each of the 16
denoising steps there; the actions are the same.

Shapes: B windows, L context tokens, C their width, W width inside, H horizon, D action dimensions, S state dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idm.config import HeadConfig
from pyramid.nn.attention import KeyValue, SelfAttentionStack
from pyramid.nn.dit import DiTConfig, build_dit
from pyramid.nn.embodiment import ActionEncoder, EmbodimentMLP, EmbodimentModule
from pyramid.nn.flow import euler_sample, interpolate, sample_time, time_bucket

__all__ = ["FlowHead", "LinearHead", "Regressor", "solve_ridge"]


class Regressor(nn.Module):
    """All tokens of a window into one vector, then a network per embodiment.

    Args:
        config: sizes.
        n_tokens: tokens per window, L.
        d_token: their width, C.
        n_extra: further numbers that each embodiment's network gets.
        dims: embodiment -> (D, S); S > 0 makes it tell the state and its change in training, too.
        horizon: H.
        short: whether tokens go to the embodiments' networks as they are: few numbers, of which a layer more would only
            learn by heart what a handful of demonstrations have in common.
    """

    def __init__(
        self,
        config: HeadConfig,
        *,
        n_tokens: int,
        d_token: int,
        n_extra: int,
        dims: Mapping[str, tuple[int, int]],
        horizon: int,
        short: bool = False,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        # Positions are kept: where something moves decides how large the action was.
        d_seen = n_tokens * d_token
        self.trunk = nn.Identity() if short else nn.Sequential(nn.Linear(d_seen, config.hidden), nn.SiLU())
        d_in = (d_seen if short else config.hidden) + n_extra
        self.head = EmbodimentMLP({name: (d_in, horizon * action) for name, (action, _) in dims.items()}, config.hidden)
        told = {name: (d_in, 2 * state) for name, (_, state) in dims.items() if state}
        self.told = EmbodimentMLP(told, config.hidden)

    def shared(self, tokens: Tensor, extra: Tensor) -> Tensor:
        """Maps tokens float [B, L, C] and further numbers float [B, E] to what all networks read, float [B, R]."""
        return torch.cat([self.trunk(tokens.flatten(1)), extra], dim=1)

    def actions(self, shared: Tensor, embodiment: str) -> Tensor:
        """Maps what `shared` gave to actions, float [B, H, D], normalised units."""
        return self.head(shared, embodiment).float().unflatten(1, (self.horizon, -1))  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """A linear map per embodiment, solved and not trained: see `fit`.

    Args:
        ridge: its penalty.
        d_in: numbers per window, L C + E.
        dims: embodiment -> D.
        horizon: H.
    """

    def __init__(self, ridge: float, *, d_in: int, dims: Mapping[str, int], horizon: int) -> None:
        super().__init__()
        self.horizon, self.ridge = horizon, ridge
        self.maps = EmbodimentModule({name: nn.Linear(d_in, horizon * action) for name, action in dims.items()})
        # A decay of weights that no gradient reaches would only shrink them.
        self.requires_grad_(False)

    def shared(self, tokens: Tensor, extra: Tensor) -> Tensor:
        """Maps tokens float [B, L, C] and further numbers float [B, E] to what the maps read, float [B, L C + E]."""
        return torch.cat([tokens.flatten(1), extra], dim=1)

    def actions(self, shared: Tensor, embodiment: str) -> Tensor:
        """Maps what `shared` gave to actions, float [B, H, D], normalised units."""
        mapped: Tensor = self.maps.fold(embodiment)(shared)
        return mapped.float().view(len(mapped), self.horizon, -1)

    @torch.no_grad()
    def fit(self, embodiment: str, tokens: Tensor, extra: Tensor, actions: Tensor) -> None:
        """Solves the map of one embodiment by ridge regression; its constant is not penalised.

        Args:
            embodiment: whose.
            tokens: of all its windows, float [N, L, C].
            extra: further numbers, float [N, E].
            actions: float [N, H, D], normalised units.
        """
        x, y = self.shared(tokens, extra).double().numpy(), actions.double().flatten(1).numpy()
        self.set(embodiment, *solve_ridge(x, y, self.ridge))

    @torch.no_grad()
    def set(self, embodiment: str, weight: NDArray[np.float64], constant: NDArray[np.float64]) -> None:
        """Sets the map of one embodiment.

        Args:
            embodiment: whose.
            weight: float64 [L C + E, H D].
            constant: float64 [H D].
        """
        linear = self.maps.fold(embodiment)
        linear.weight.copy_(torch.from_numpy(weight.T))
        linear.bias.copy_(torch.from_numpy(constant))


def solve_ridge(
    x: NDArray[np.float64], y: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solves ridge regression; the constant is not penalised.

    Args:
        x: float64 [N, F].
        y: float64 [N, D].
        penalty: for each row, > 0.

    Returns:
        float64 [F, D] and the constant, float64 [D]: ``x @ weight + constant`` is close to y.
    """
    centered, mean = x - x.mean(0), y.mean(0)
    gram = centered.T @ centered + penalty * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, centered.T @ (y - mean))
    return weight, mean - x.mean(0) @ weight


class FlowHead(nn.Module):
    """Flow-matching diffusion transformer over action chunks with a context that is encoded once.

    Args:
        dims: embodiment -> D.
        width: W, of the context too.
        heads: attention heads of the context's mixer.
        mixer_layers: self-attention blocks over the context.
        dit: the diffusion transformer.
        n_positions: longest chunk.
        horizon: H.
        steps: Euler steps.
        dropout: of the mixer, in training.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int,
        heads: int,
        mixer_layers: int,
        dit: DiTConfig,
        n_positions: int,
        horizon: int,
        steps: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.horizon, self.sample_steps, self.dims = horizon, steps, dict(dims)
        self.context_mixer = SelfAttentionStack(width, heads, mixer_layers, dropout)
        self.dit = build_dit(dit)
        self.action_encoder = ActionEncoder(dims, width)
        self.action_decoder = EmbodimentMLP({name: (dit.out_width, dim) for name, dim in dims.items()}, width)
        self.position = nn.Parameter(torch.zeros(n_positions, width))

    @classmethod
    def of(cls, config: HeadConfig, dims: Mapping[str, int], horizon: int) -> FlowHead:
        """Builds the head that a configuration describes."""
        dit = DiTConfig(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            context_width=config.width,
            out_width=config.width,
            dropout=config.dropout,
        )
        return cls(
            dims,
            width=config.width,
            heads=config.heads,
            mixer_layers=config.mixer_layers,
            dit=dit,
            n_positions=horizon,
            horizon=horizon,
            steps=config.steps,
            dropout=config.dropout,
        )

    def encode(self, tokens: Tensor) -> list[KeyValue]:
        """Maps context tokens float [B, L, W] to the keys and values of the DiT's cross-attention."""
        return self.dit.project_context(self.context_mixer(tokens))

    def velocity(self, x: Tensor, bucket: Tensor, context: list[KeyValue], embodiment: str) -> Tensor:
        """Predicts the velocity of a noisy chunk: float [B, H, D], time buckets int64 [B] -> float [B, H, D]."""
        tokens = self.action_encoder(x, bucket, embodiment) + self.position[: x.shape[1]]
        return self.action_decoder(self.dit(tokens, bucket, context), embodiment)  # type: ignore[no-any-return]

    def sample(self, context: list[KeyValue], noise: Tensor, embodiment: str) -> Tensor:
        """Turns noise, float [B, H, D], into actions in all Euler steps; the context is not encoded again."""
        return euler_sample(lambda x, bucket: self.velocity(x, bucket, context, embodiment), noise, self.sample_steps)

    def loss(self, tokens: Tensor, actions: Tensor, embodiment: str, generator: torch.Generator) -> Tensor:
        """Returns the flow-matching loss of a batch, float []: mean squared error of the velocity.

        Args:
            tokens: context, float [B, L, W].
            actions: float [B, H, D], normalised units.
            embodiment: whose.
            generator: source of noise and flow times, on the CPU.
        """
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        time = sample_time(len(actions), generator, rule="n1").to(actions)
        x, target = interpolate(actions, noise, time)
        predicted = self.velocity(x, time_bucket(time), self.encode(tokens), embodiment)
        return nn.functional.mse_loss(predicted.float(), target)
