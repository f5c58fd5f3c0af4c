"""Small networks that tie latents to what a robot measured: actions, proprioception.

Training uses them, and labels hold the actions that they tell.

Shapes: B batch, N tokens, D token width, E embodiments, A widest action or state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lam.facts import Statistics

__all__ = ["ActionHead", "BodyCritic", "ProprioHead"]


class _Normalised(nn.Module):
    """Values of several embodiments in one array, z-scored by their own statistics."""

    mean: Tensor
    std: Tensor
    used: Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.names = sorted(statistics)
        self.width = max(len(statistics[name]["mean"]) for name in self.names)
        for part, filler in (("mean", 0.0), ("std", 1.0)):
            rows = [statistics[n][part] + [filler] * (self.width - len(statistics[n][part])) for n in self.names]
            self.register_buffer(part, torch.tensor(rows, dtype=torch.float32))
        sizes = torch.tensor([[len(statistics[name]["mean"])] for name in self.names])
        self.register_buffer("used", (torch.arange(self.width) < sizes).float())

    def z_scored(self, values: Tensor, embodiment: Tensor) -> Tensor:
        """Returns float [B, A] in units of the embodiment's spread, for embodiments int64 [B]."""
        return (values - self.mean[embodiment]) / self.std[embodiment] * self.used[embodiment]

    def error(self, predicted: Tensor, target: Tensor, embodiment: Tensor) -> Tensor:
        """Returns the mean squared error over the dimensions that the rows' embodiments have."""
        used = self.used[embodiment]
        return ((predicted - target).square() * used).sum() / used.sum().clamp(min=1)

    def pick(self, whole: Tensor, embodiment: Tensor) -> Tensor:
        """Takes each row's own embodiment from float [B, E * A]: float [B, A]."""
        return whole.view(len(whole), -1, self.width)[torch.arange(len(whole), device=whole.device), embodiment]


class ActionHead(_Normalised):
    """Linear map from the pre-quantisation latent to the mean action over the gap (LAOM, arXiv 2502.00379)."""

    def __init__(self, statistics: Statistics, latent_dim: int) -> None:
        super().__init__(statistics)
        self.linear = nn.Linear(latent_dim, len(self.names) * self.width)

    def forward(self, latent: Tensor, action: Tensor, embodiment: Tensor) -> Tensor:
        """Returns the loss float32 [] of latents float [B, N, D] against actions float [B, A]."""
        predicted = self.pick(self.linear(latent.flatten(1)).float(), embodiment)
        return self.error(predicted, self.z_scored(action, embodiment), embodiment)

    def decode(self, latent: Tensor, name: str) -> Tensor:
        """Returns the mean actions over the gap in physical units, float32 [B, A], of latents float [B, N, D].

        Raises:
            KeyError: no action of this embodiment was learned from.
        """
        if name not in self.names:
            raise KeyError(name)
        place, size = self.names.index(name), int(self.used[self.names.index(name)].sum())
        every = self.linear(latent.flatten(1)).float().view(len(latent), -1, self.width)
        found: Tensor = every[:, place] * self.std[place] + self.mean[place]
        return found[:, :size]


class ProprioHead(_Normalised):
    """MLP from tokens and state to the change of state over the gap (after villa-X, arXiv 2507.23682)."""

    def __init__(self, statistics: Statistics, latent_dim: int, hidden: int = 256) -> None:
        super().__init__(statistics)
        d_in = latent_dim + self.width + len(self.names)
        self.mlp = nn.Sequential(nn.Linear(d_in, hidden), nn.GELU(), nn.Linear(hidden, self.width))

    def forward(self, z: Tensor, state: Tensor, later: Tensor, embodiment: Tensor) -> Tensor:
        """Returns the loss float32 [] of tokens float [B, N, D] and states float [B, A] at both frames."""
        now, then = self.z_scored(state, embodiment), self.z_scored(later, embodiment)
        who = nn.functional.one_hot(embodiment, len(self.names)).to(now)
        predicted = self.mlp(torch.cat([z.flatten(1), now, who], dim=1)).float()
        return self.error(predicted, then - now, embodiment)


class BodyCritic(nn.Module):
    """Tells bodies apart by their latents, while the encoder learns not to let it (arXiv 1409.7495)."""

    def __init__(self, n_bodies: int, latent_dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, n_bodies))

    def forward(self, latent: Tensor, body: Tensor) -> Tensor:
        """Returns the critic's cross-entropy float32 [] on latents float [B, F] of bodies int64 [B].

        Every body counts alike, however many pairs show it: labelled pairs are a robot's, on top of its share.
        """
        scale = latent.detach().std(0).mean() + 1e-3
        told = self.mlp(_turned(((latent - latent.mean(0)) / scale).float()))
        counts = torch.bincount(body, minlength=told.shape[1]).clamp(min=1)
        return nn.functional.cross_entropy(told, body, weight=1 / counts)


def _turned(x: Tensor) -> Tensor:
    """The same values, with the gradient turned round."""
    return 2 * x.detach() - x
