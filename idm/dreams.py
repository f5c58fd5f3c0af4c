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

from idm.heads import FlowHead
from idm.vision import double_downsample
from pyramid.errors import DataError
from pyramid.nn.attention import KeyValue
from pyramid.nn.dit import DiTConfig
from pyramid.nn.flow import interpolate, masked_mean, time_bucket
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


class DreamsIDM(FlowHead):
    """Frames to the actions between them: SigLIP tower, projector, self-attention, flow-matching DiT."""

    def __init__(self, config: Mapping[str, Any], n_slots: int, action_dim: int) -> None:
        width, dit, mixer = int(config["hidden_size"]), config["dit"], config["vl_self_attention"]
        horizon = int(config["action_horizon"])
        super().__init__(
            {slot_name(i): action_dim for i in range(n_slots)},
            width=width,
            heads=int(mixer["num_attention_heads"]),
            mixer_layers=int(mixer["num_layers"]),
            dit=DiTConfig(
                width=width,
                layers=int(dit["num_layers"]),
                heads=int(dit["num_attention_heads"]),
                context_width=width,
                out_width=int(dit["output_dim"]),
            ),
            n_positions=int(config["max_seq_len"]),
            horizon=horizon,
            steps=int(config["num_inference_timesteps"]),
        )
        self.vision = SiglipVisionModel(SiglipVisionConfig(**config["siglip_vision"], vision_use_head=False))
        self.vision_out = nn.Linear(int(config["siglip_hidden_size"]), width)
        self.projector = double_downsample(width)
        self.view = nn.Embedding(int(config["max_num_views"]), width)

    def tokens(self, images: Tensor) -> Tensor:
        """Maps images float [I, 3, H, W] in [-1, 1] to visual tokens that do not know their place, float [I, N, W]."""
        return self.projector(self.vision_out(self.vision(images).last_hidden_state))  # type: ignore[no-any-return]

    def see(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """Maps images float [I, 3, H, W] in [-1, 1] and views int64 [I] to visual tokens float [I, N, W]."""
        return self.tokens(images) + self.view(view_ids)[:, None]  # type: ignore[no-any-return]

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
        return self.encode(tokens)

    @torch.no_grad()
    def loss_and_sample(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the masked loss, the sampled actions and the visual tokens of a published batch.

        Raises:
            DataError: tokens other than actions in the DiT's sequence.
        """
        if not bool((inputs["sa_token_ids"] == _ACTION_TOKEN).all()):
            raise DataError("only sequences of action tokens are known here")
        visual = self.see(inputs["images"], inputs["view_ids"])
        keys = self.context(visual, inputs["vl_token_ids"])
        x, target = interpolate(inputs["actions"], inputs["noise"], inputs["time"])
        predicted, sampled = [], []
        for row, index in enumerate(inputs["embodiment_id"].tolist()):
            one, slot = slice(row, row + 1), slot_name(index)
            own = [(key[one], value[one]) for key, value in keys]
            predicted.append(self.velocity(x[one], time_bucket(inputs["time"][one]), own, slot))
            sampled.append(self.sample(own, inputs["noise"][one], slot))
        return masked_mean(torch.cat(predicted), target, inputs["actions_mask"], 0.0), torch.cat(sampled), visual


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
