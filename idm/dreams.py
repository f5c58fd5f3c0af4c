"""The inverse dynamics head of GR00T-Dreams, built from the parts of `pyramid.nn`, with its published weights.

Facts are those of the public Apache-2.0 code (see also DreamGen, arXiv 2505.12705); none of it is used. The context is
encoded once per window here and in each of the 16 denoising steps there; the actions are the same.

Shapes: B windows, I images in all, N visual tokens per image, L context tokens, W width, T steps, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from pyramid.errors import DataError
from pyramid.nn.attention import KeyValue, SelfAttentionStack
from pyramid.nn.dit import DiTConfig, build_dit
from pyramid.nn.embodiment import ActionEncoder, EmbodimentMLP
from pyramid.nn.flow import euler_sample, interpolate, masked_mean, time_bucket
from pyramid.nn.published import rename_weights, slot_name

__all__ = ["DreamsIDM", "read_dreams"]

_IMAGE_TOKEN, _ACTION_TOKEN = 1, 4
_UNUSED = ("siglip_model.logit_", "siglip_model.vision_model.head.")
_OTHERS = {
    "siglip_model.vision_model": "vision",
    "vision_projector": "vision_out",
    "mm_projector.layers": "projector",
    "view_embedding": "view",
    "position_embedding.weight": "position",
}


class SpaceToDepth(nn.Module):
    """Joins each 2x2 square of a square grid of tokens into one token four times as wide."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps float [I, S * S, W], S even, to float [I, S * S / 4, 4 W]; columns before rows, as published."""
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1] or side % 2:
            raise DataError(f"{x.shape[1]} visual tokens are no square grid with an even side")
        grid = x.view(len(x), side // 2, 2, side // 2, 2, x.shape[2])
        return grid.permute(0, 3, 1, 2, 4, 5).reshape(len(x), side * side // 4, 4 * x.shape[2])


class DreamsIDM(nn.Module):
    """Frames to the actions between them: SigLIP tower, projector, self-attention, flow-matching DiT."""

    def __init__(self, config: Mapping[str, Any], n_slots: int, action_dim: int) -> None:
        super().__init__()
        width, dit, mixer = int(config["hidden_size"]), config["dit"], config["vl_self_attention"]
        self.horizon, self.sample_steps = int(config["action_horizon"]), int(config["num_inference_timesteps"])
        self.vision = SiglipVisionModel(SiglipVisionConfig(**config["siglip_vision"], vision_use_head=False))
        self.vision_out = nn.Linear(int(config["siglip_hidden_size"]), width)
        self.projector = nn.Sequential(*_downsample(width), *_downsample(width))
        self.view = nn.Embedding(int(config["max_num_views"]), width)
        self.context_mixer = SelfAttentionStack(width, int(mixer["num_attention_heads"]), int(mixer["num_layers"]))
        self.dit = build_dit(
            DiTConfig(
                width=width,
                layers=int(dit["num_layers"]),
                heads=int(dit["num_attention_heads"]),
                context_width=width,
                out_width=int(dit["output_dim"]),
                dropout=0.0,
            )
        )
        names = [slot_name(i) for i in range(n_slots)]
        self.action_encoder = ActionEncoder(dict.fromkeys(names, action_dim), width)
        self.action_decoder = EmbodimentMLP({name: (int(dit["output_dim"]), action_dim) for name in names}, width)
        self.position = nn.Parameter(torch.zeros(int(config["max_seq_len"]), width))

    def encode(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """Maps images float [I, 3, H, W] in [-1, 1] and views int64 [I] to visual tokens float [I, N, W]."""
        features = self.vision(images).last_hidden_state
        return self.projector(self.vision_out(features)) + self.view(view_ids)[:, None]  # type: ignore[no-any-return]

    def context(self, visual: Tensor, token_ids: Tensor) -> list[KeyValue]:
        """Places visual tokens into sequences and prepares them for the DiT's cross-attention.

        Args:
            visual: float [I, N, W], in the order in which their places come.
            token_ids: int64 [B, L]; 1 where a visual token stands, else padding, which is zero and attended to.
        """
        places = token_ids == _IMAGE_TOKEN
        if int(places.sum()) != visual.shape[0] * visual.shape[1]:
            raise DataError(f"{visual.shape[0] * visual.shape[1]} visual tokens for {int(places.sum())} places")
        tokens = visual.new_zeros(*token_ids.shape, visual.shape[2])
        tokens[places] = visual.flatten(0, 1)
        return self.dit.project_context(self.context_mixer(tokens))

    def velocity(self, x: Tensor, bucket: Tensor, context: list[KeyValue], slot: str) -> Tensor:
        """Predicts the velocity of a noisy chunk: float [B, T, D], time buckets int64 [B] -> float [B, T, D]."""
        tokens = self.action_encoder(x, bucket, slot) + self.position[: x.shape[1]]
        return self.action_decoder(self.dit(tokens, bucket, context), slot)  # type: ignore[no-any-return]

    @torch.no_grad()
    def loss_and_sample(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the masked loss, the sampled actions and the visual tokens of a published batch.

        Raises:
            DataError: tokens other than actions in the DiT's sequence.
        """
        if not bool((inputs["sa_token_ids"] == _ACTION_TOKEN).all()):
            raise DataError("only sequences of action tokens are known here")
        visual = self.encode(inputs["images"], inputs["view_ids"])
        keys = self.context(visual, inputs["vl_token_ids"])
        x, target = interpolate(inputs["actions"], inputs["noise"], inputs["time"])
        predicted, sampled = [], []
        for row, index in enumerate(inputs["embodiment_id"].tolist()):
            one, slot = slice(row, row + 1), slot_name(index)
            own = [(key[one], value[one]) for key, value in keys]
            predicted.append(self.velocity(x[one], time_bucket(inputs["time"][one]), own, slot))
            sampled.append(self.sample(own, inputs["noise"][one], slot))
        return masked_mean(torch.cat(predicted), target, inputs["actions_mask"], 0.0), torch.cat(sampled), visual

    def sample(self, context: list[KeyValue], noise: Tensor, slot: str) -> Tensor:
        """Turns noise, float [B, T, D], into actions in all Euler steps; the context is not encoded again."""
        return euler_sample(lambda x, bucket: self.velocity(x, bucket, context, slot), noise, self.sample_steps)


def _downsample(width: int) -> list[nn.Module]:
    # Five entries, so that the published numbers of the layers are ours.
    return [SpaceToDepth(), nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width)]


def read_dreams(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> DreamsIDM:
    """Builds the model from a published configuration and its weights, names without the checkpoint's prefix.

    Raises:
        DataError: a configuration or a weight that no release has; it is named.
    """
    if config.get("mm_projector_type") != "mlp_doubledownsample":
        raise DataError(f"the projector '{config.get('mm_projector_type')}' is not known here")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(_UNUSED)}
    try:
        n_slots, action_dim = weights["action_encoder.W1.W"].shape[:2]
        model = DreamsIDM(config, n_slots, action_dim).eval()
        model.load_state_dict(dict(rename_weights(kept, [slot_name(i) for i in range(n_slots)], _OTHERS)))
    except KeyError as error:
        raise DataError(f"the published model's configuration or weights lack {error}") from error
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise DataError(f"the published weights do not fit their configuration: {detail}") from error
    return model
