"""The latent-action model: an encoder of frame pairs, a quantiser, and a forward model of one frame and the tokens.

Which pairs it sees is left to `lam.pairs`, what it minimises to `lam.losses`. Shapes: B batch, N tokens, D code width,
S image side, C channels and H side of the target's map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lam.config import LAMConfig, QuantizerConfig
from lam.decoders import FiLMDecoder, TransformerDecoder
from lam.encoders import CNNEncoder, TransformerEncoder
from lam.facts import ModelFacts
from lam.features import FrozenFeatures
from lam.heads import ActionHead, BodyCritic, ProprioHead
from lam.quantizers import Quantized, build_quantizer
from lam.views import Context, Spec, View
from pyramid.config import from_dict

__all__ = ["FLOW_CHANNELS", "Background", "LatentActionModel", "Output", "Tokens", "build_model", "load_frozen"]

FLOW_CHANNELS = 2


class Tokens(NamedTuple):
    """What the encoder and the bottlenecks make of a pair."""

    quantized: Quantized
    """The tokens that are the latent action."""
    background: Tensor | None
    """float32 [B, M, D1]: tokens of the first stage's codebook; None in one stage."""
    loss: Tensor
    """float32 []: what the bottlenecks add to the loss."""


class Output(NamedTuple):
    """One pass over a batch of pairs."""

    tokens: Tokens
    """What the bottlenecks let through."""
    change: Tensor
    """float32 [B, C, H, H]: predicted change of the target from the first frame to the second."""
    flow: Tensor | None
    """float32 [B, 2, H, H]: predicted optical flow, shares of the image's side; None without that objective."""

    @property
    def latent(self) -> Tensor:
        """float32 [B, N, D], before quantisation."""
        return self.tokens.quantized.latent


class Background(nn.Module):
    """The codes of a first stage, frozen: they take what instructions do not say (UniVLA, arXiv 2505.06111).

    Args:
        config: the quantiser of the first stage.
        n_tokens: its tokens.
    """

    def __init__(self, config: QuantizerConfig, n_tokens: int) -> None:
        super().__init__()
        self.quantizer = build_quantizer(config, 1, n_tokens).requires_grad_(False).eval()
        self.spec: Spec = (n_tokens, config.dim)
        self.commitment = config.commitment

    def train(self, mode: bool = True) -> Background:
        """Stays in eval mode: frozen."""
        return super().train(False)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens float32 [B, M, D1] of e, same shape, with a gradient straight through, and the commitment."""
        code = self.quantizer(e.float()).z.detach()
        return e + (code - e).detach(), self.commitment * nn.functional.mse_loss(e, code)


class LatentActionModel(nn.Module):
    """What changed between two frames, as N small tokens, and the second frame predicted from the first and them.

    Args:
        config: everything about it.
        facts: what the config does not say.
    """

    def __init__(self, config: LAMConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        model, trainer = config.model, config.trainer
        vectors = (
            trainer.batch_size * trainer.devices * model.n_tokens
        )  # codes are counted over all ranks, at each pass
        self.quantizer = build_quantizer(config.quantizer, vectors, model.n_tokens)
        self.features = (
            FrozenFeatures.described_by(facts.vision, config.target, model.image_size_px) if facts.vision else None
        )
        self.background = (
            Background(from_dict(QuantizerConfig, facts.stage1["quantizer"]), facts.stage1["n_tokens"])
            if facts.stage1
            else None
        )
        behind = [self.background.spec] if self.background else []
        self.channels = self.features.dim if self.features else 3
        self.encoder = self._encoder([(model.n_tokens, self.quantizer.input_dim), *behind])
        self.decoder = self._decoder([(model.n_tokens, config.quantizer.dim), *behind])
        d_latent = model.n_tokens * config.quantizer.dim
        self.action_head = ActionHead(facts.actions, d_latent) if facts.actions else None
        self.critic = BodyCritic(len(facts.bodies), d_latent) if facts.bodies else None
        self.proprio_head = ProprioHead(facts.states, d_latent) if facts.states else None
        self.to(memory_format=torch.channels_last)  # 1.3 times faster on a CPU

    def _encoder(self, specs: list[Spec]) -> nn.Module:
        model = self.config.model
        if model.encoder == "cnn":
            return CNNEncoder(model, specs)
        dim, grid = self._grid(seen=model.encoder_input == "features")
        return TransformerEncoder(model, specs, dim, grid, self.facts.text_dim)

    def _decoder(self, specs: list[Spec]) -> nn.Module:
        model = self.config.model
        channels = self.channels + (FLOW_CHANNELS if self.config.objectives.flow_weight else 0)
        if model.decoder == "film":
            return FiLMDecoder(model, specs, channels)
        dim, grid = self._grid(seen=self.features is not None)
        return TransformerDecoder(model, specs, channels, feature_dim=dim, grid=grid, text_dim=self.facts.text_dim)

    def _grid(self, *, seen: bool) -> tuple[int, int]:
        if seen and self.features is not None:
            return self.features.dim, self.features.grid
        return 0, self.config.model.image_size_px // self.config.model.patch_px

    def forward(self, first: View, second: View, context: Context, *, seen: tuple[View, View] | None = None) -> Output:
        """Encodes and predicts pairs of frames; ``seen`` are what the encoder sees, where that is something else."""
        tokens = self.tokens(*(seen or (first, second)), context)
        change, flow = self.predict(first, tokens.quantized.z, context, tokens.background)
        return Output(tokens, change, flow)

    def look(self, pixels: Tensor) -> View:
        """Returns the view of frames, float32 [B, 3, S, S] in [0, 1]."""
        return View(pixels, None if self.features is None else self.features(pixels))

    def target(self, view: View) -> Tensor:
        """Returns what of a frame is predicted, float32 [B, C, H, H]: pixels or features."""
        return view.pixels if view.features is None else view.features

    def tokens(self, first: View, second: View, context: Context) -> Tokens:
        """Encodes pairs and passes them through the bottlenecks."""
        e, *behind = self.encoder(first, second, context)
        quantized = self.quantizer(e)
        if self.background is None:
            return Tokens(quantized, None, quantized.loss)
        z, loss = self.background(behind[0])
        return Tokens(quantized, z, quantized.loss + loss)

    def predict(
        self, first: View, z: Tensor, context: Context, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the predicted change float32 [B, C, H, H], and flow, from first frames and tokens alone.

        Args:
            first: first frames.
            z: float32 [B, N, D].
            context: gap and instruction.
            background: float32 [B, M, D1], tokens of the first stage's codebook, in two stages.
        """
        out = self.decoder(first, [z] if background is None else [z, background], context)
        if not self.config.objectives.flow_weight:
            return out, None
        return out[:, : self.channels], out[:, self.channels :]


def build_model(config: LAMConfig, facts: ModelFacts | None = None) -> LatentActionModel:
    """Builds the untrained model, frozen parts included (their weights: `load_frozen`)."""
    return LatentActionModel(config, facts or ModelFacts())


def load_frozen(model: LatentActionModel, vision: FrozenFeatures | None, stage1: Mapping[str, Tensor] | None) -> None:
    """Gives a freshly built model the weights of its frozen parts.

    Args:
        model: the model.
        vision: the pretrained vision model; None without one.
        stage1: state of the first stage's quantiser; None in one stage.
    """
    if model.features is not None and vision is not None:
        model.features.load_state_dict(vision.state_dict(), strict=True)
    if model.background is not None and stage1 is not None:
        model.background.quantizer.load_state_dict(stage1, strict=True)
