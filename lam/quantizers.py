"""Quantisers between the encoder and the forward model, all behind one small interface.

What codebooks share is in `lam.codebooks`. Shapes: B batch, N tokens, D code width, K codes, Q codes per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize

from lam.codebooks import HitCounter, all_mean, draw_rows, synchronise
from lam.config import QuantizerConfig

__all__ = ["Quantized", "Quantizer", "build_quantizer"]

_RESET_NOISE = 1e-2
"""Spread of a redrawn NSVQ code around a live token, in units of the tokens' own."""
_CENTRE_WEIGHT = 0.1
"""Weight of a batch in the moving means of NSVQ's positions."""
_LFQ_SHARPNESS = 10.0
"""Inverse temperature of the soft assignment in the entropy loss of LFQ. Public code of arXiv 2310.05737 has 100; then
only numbers within .01 of 0 get a gradient, and a token that began on one side stays there in a short run."""


class Quantized(NamedTuple):
    """What comes out of a quantiser."""

    z: Tensor
    """float32 [B, N, D]: what the forward model sees; gradients pass to the input."""
    codes: Tensor | None
    """int64 [B, N * Q], in [0, n_codes); None for a continuous bottleneck."""
    loss: Tensor
    """float32 []: the quantiser's own weighted loss; 0 where it has none, and in eval mode."""
    latent: Tensor
    """float32 [B, N, D]: the pre-quantisation latent, which labels hold."""


class Quantizer(nn.Module):
    """A bottleneck of ``n_codes`` codes per position (0: continuous). Runs in float32 whatever the autocast."""

    n_codes: int
    input_dim: int
    """Width that the encoder must give a token."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config, self.n_codes, self.input_dim = config, config.n_codes, config.dim

    def forward(self, e: Tensor) -> Quantized:
        """Quantises what the encoder gives, float [B, N, input_dim]."""
        with torch.autocast(e.device.type, enabled=False):
            return self.quantize(e.float())

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, input_dim]; the part that subclasses write."""
        raise TypeError(f"{type(self).__name__} does not say how it quantises")

    def _committed(self, e: Tensor, code: Tensor, *, pull_code: bool) -> Tensor:
        """Returns the loss that draws tokens to codes, and codes to tokens unless averages move them."""
        if not self.training:
            return e.new_zeros(())
        loss = self.config.commitment * nn.functional.mse_loss(e, code.detach())
        return loss + nn.functional.mse_loss(code, e.detach()) if pull_code else loss


class Continuous(Quantizer):
    """No quantisation: the upper bound of what a probe finds (as in LAOM, arXiv 2502.00379)."""

    def quantize(self, e: Tensor) -> Quantized:
        """Passes float32 [B, N, D] on."""
        return Quantized(e, None, e.new_zeros(()), e)


class Variational(Quantizer):
    """Normal distribution of each number, drawn to a unit normal (AdaWorld, arXiv 2503.18938); the label is its mean.

    The encoder gives mean and log-variance; in eval mode the mean alone is passed on (and may be given alone).
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.input_dim = 2 * config.dim

    def quantize(self, e: Tensor) -> Quantized:
        """Draws from float32 [B, N, 2 D] in training mode."""
        mean = e[..., : self.config.dim]
        if not self.training:
            return Quantized(mean, None, e.new_zeros(()), mean)
        log_var = e[..., self.config.dim :].clamp(-20, 10)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum((1, 2)).mean()
        return Quantized(z, None, self.config.kl_weight * kl, mean)


class FiniteScalar(Quantizer):
    """Rounding of a few bounded numbers (FSQ, arXiv 2309.15505); no loss and no state, so no code can die."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.fsq = FSQ(list(config.levels), dim=config.dim)

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]."""
        z, codes = self.fsq(e)
        return Quantized(z, codes.long(), e.new_zeros(()), e)


class LookupFree(Quantizer):
    """Signs of a few numbers (LFQ, arXiv 2310.05737); its entropy loss, not a codebook, keeps codes alive.

    The loss wants all codes in use at every position of a token: over all positions together, each could stick to one.

    The loss is written here: the library's takes the mean over ranks of a tensor that it has not summed over them.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.lfq = LFQ(dim=config.dim, codebook_size=config.codebook_size, entropy_loss_weight=0.0)

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]."""
        z, codes, _ = self.lfq(e)
        loss = self._entropy_loss(e) if self.training else e.new_zeros(())
        return Quantized(z, codes.long(), loss, e)

    def _entropy_loss(self, e: Tensor) -> Tensor:
        similarity = 2 * self.lfq.project_in(e) @ self.lfq.codebook.T
        p = (similarity * _LFQ_SHARPNESS).softmax(-1)
        own, whole = _entropy(p).mean(), _entropy(all_mean(p.mean(0))).mean()
        return self.config.entropy_weight * (own - whole)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-5).log()).sum(-1)


class VectorQuantizer(Quantizer):
    """One codebook for all tokens, moved by averages of its hits (van den Oord et al., 2017, appendix A.1) or gradient.

    Codes start at k-means centres of the first batch, and one that is hit too seldom is drawn anew from the current
    batch of all ranks, for the whole run. The rotation trick is off: it costs reconstruction with a slow decay.

    Args:
        config: codebook options.
        vectors_per_step: latent tokens in one training batch; the library counts dead codes in hits per batch.
    """

    def __init__(self, config: QuantizerConfig, vectors_per_step: int) -> None:
        super().__init__(config)
        self.by_gradient = config.kind == "vq_grad"
        self.vq = VectorQuantize(
            dim=config.dim,
            learnable_codebook=self.by_gradient,
            ema_update=not self.by_gradient,
            **_codebook_options(config, vectors_per_step),
        )

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]; in training mode the codebook counts, and moves by its averages."""
        synchronise(self.vq._codebook)
        z, codes, _ = self.vq(e)
        return Quantized(z, codes, self._committed(e, self.vq.codebook[codes], pull_code=self.by_gradient), e)


class ResidualVectorQuantizer(Quantizer):
    """Codebooks one behind the other, each on what the last left over (arXiv 2107.03312); moved by averages.

    Args:
        config: codebook options.
        vectors_per_step: latent tokens in one training batch.
    """

    def __init__(self, config: QuantizerConfig, vectors_per_step: int) -> None:
        super().__init__(config)
        options = _codebook_options(config, vectors_per_step)
        self.vq = ResidualVQ(dim=config.dim, num_quantizers=config.stages, **options)

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]; the codes of a token stand together, coarse first."""
        for layer in self.vq.layers:
            synchronise(layer._codebook)
        z, codes, _ = self.vq(e)
        return Quantized(z, codes.flatten(1), self._committed(e, z.detach(), pull_code=False), e)


def _codebook_options(config: QuantizerConfig, vectors_per_step: int) -> dict[str, Any]:
    return {
        "codebook_size": config.codebook_size,
        "decay": config.decay,
        "commitment_weight": 0.0,  # `Quantizer._committed` weighs its two halves apart
        "kmeans_init": True,
        "threshold_ema_dead_code": config.dead_code_share * vectors_per_step / config.codebook_size,
        "rotation_trick": False,
    }


class NoiseSubstitution(Quantizer):
    """Trains on noise as long as the quantisation error in its place (NSVQ; Vali and Bäckström, 2022; LAPA's choice).

    The codebook learns through the length of the error, there is no further loss. Codes start as tokens of the first
    batch; a dead one becomes a live token with a little noise, for the whole run.

    What is quantised is a token's distance from the moving mean of its position: nothing here draws positions together,
    and where they lie apart, a codebook that all share would be spent on telling which position it is.

    Args:
        config: codebook options.
        vectors_per_step: latent tokens in one training batch.
        n_tokens: positions.
    """

    started: Tensor
    centre: Tensor

    def __init__(self, config: QuantizerConfig, vectors_per_step: int, n_tokens: int) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.zeros(config.codebook_size, config.dim))
        self.counter = HitCounter(config.codebook_size, config.dead_code_share, vectors_per_step)
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("centre", torch.zeros(n_tokens, config.dim))

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]."""
        if self.training:
            self._follow(e)
        x = e - self.centre
        if self.training and not self.started:
            self._redraw(torch.ones_like(self.counter.hits, dtype=torch.bool), x)
            self.started.fill_(True)
        codes = torch.cdist(x.detach().flatten(0, 1), self.codebook.detach()).argmin(-1).view(e.shape[:2])
        code = self.codebook[codes]
        if not self.training:
            return Quantized(code + self.centre, codes, e.new_zeros(()), e)
        noise = nn.functional.normalize(torch.randn_like(e), dim=-1)
        length = (x - code).square().sum(-1, keepdim=True).add(1e-12).sqrt()
        dead = self.counter.dead(codes)
        z = e + length * noise
        if dead.any():
            self._redraw(dead, x)
        return Quantized(z, codes, e.new_zeros(()), e)

    @torch.no_grad()
    def _follow(self, e: Tensor) -> None:
        mean = all_mean(e.mean(0).view(*self.centre.shape[:1], -1, e.shape[-1]).mean(1))
        self.centre.lerp_(mean, _CENTRE_WEIGHT if self.started else 1.0)

    @torch.no_grad()
    def _redraw(self, dead: Tensor, x: Tensor) -> None:
        rows = draw_rows(x.flatten(0, 1), 2 * len(dead))
        fresh, other = rows.chunk(2)
        # Noise of the tokens' own spread, from the tokens: equal on every rank, as they are.
        fresh = fresh + _RESET_NOISE * (other - rows.mean(0))
        self.codebook.data[dead] = fresh[dead].to(self.codebook)


class LinearCodebook(Quantizer):
    """A fixed random codebook seen through one learned matrix, so that codes move together (SimVQ, arXiv 2411.02038).

    A code that dies all the same gets a new fixed row: the one that the matrix maps to a live token.

    Args:
        config: codebook options.
        vectors_per_step: latent tokens in one training batch.
    """

    def __init__(self, config: QuantizerConfig, vectors_per_step: int) -> None:
        super().__init__(config)
        self.vq = SimVQ(config.dim, config.codebook_size, rotation_trick=False)
        self.counter = HitCounter(config.codebook_size, config.dead_code_share, vectors_per_step)

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]."""
        z, codes, _ = self.vq(e)
        code = self.vq.indices_to_codes(codes)
        if self.training:
            self._revive(self.counter.dead(codes), e)
        return Quantized(z if self.training else code, codes, self._committed(e, code, pull_code=True), e)

    @torch.no_grad()
    def _revive(self, dead: Tensor, e: Tensor) -> None:
        if dead.any():
            fresh = draw_rows(e.flatten(0, 1), len(dead))
            rows = torch.linalg.lstsq(self.vq.code_transform.weight, fresh.T).solution.T
            self.vq.frozen_codebook.data[dead] = rows[dead]  # past autograd, which still holds the old rows


_KINDS: dict[str, Callable[[QuantizerConfig, int, int], Quantizer]] = {
    "vq_ema": lambda config, vectors, _: VectorQuantizer(config, vectors),
    "vq_grad": lambda config, vectors, _: VectorQuantizer(config, vectors),
    "residual_vq": lambda config, vectors, _: ResidualVectorQuantizer(config, vectors),
    "nsvq": NoiseSubstitution,
    "fsq": lambda config, *_: FiniteScalar(config),
    "simvq": lambda config, vectors, _: LinearCodebook(config, vectors),
    "lfq": lambda config, *_: LookupFree(config),
    "vae": lambda config, *_: Variational(config),
    "none": lambda config, *_: Continuous(config),
}


def build_quantizer(config: QuantizerConfig, vectors_per_step: int, n_tokens: int = 1) -> Quantizer:
    """Builds the quantiser that ``config.kind`` names.

    Args:
        config: quantiser options.
        vectors_per_step: batch size times tokens of a training step, over all ranks.
        n_tokens: positions that may be told apart, a divisor of the tokens of a latent action.
    """
    return _KINDS[config.kind](config, vectors_per_step, n_tokens)
