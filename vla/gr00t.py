"""Published GR00T action heads read into ours: their weights, their configuration, their quirks.

Facts are those of the public Apache-2.0 code of GR00T N1, N1.5 and N1.7 (arXiv 2503.14734); no code of it is used. What
each version does differently from what is right is said where it is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyramid.errors import DataError
from pyramid.nn.flow import interpolate, masked_mean, time_bucket
from pyramid.nn.published import rename_weights, slot_name
from pyramid.types import Embodiment
from vla.action_head import ActionHead, PreparedContext, build_action_head
from vla.config import HeadConfig

__all__ = ["PublishedHead", "read_head"]

_OTHERS = {"vlln": "context_norm", "position_embedding.weight": "position", "future_tokens.weight": "future"}
_N1_7_EPSILON = 1e-6
"""Added to the mask's sum in the loss of N1.6 and N1.7."""


@dataclass(frozen=True)
class PublishedHead:
    """A published head as ours, with what its version does in its own way."""

    head: ActionHead
    """Our head with the published weights; one embodiment per published slot."""
    text_every: int
    """N1.7: of the cross-attention blocks, every so many attend to text and the others to image tokens; 0 = none do."""
    loss_epsilon: float
    """Added to the mask's sum in the loss."""

    def prepare(self, inputs: Mapping[str, Tensor], row: int, name: str) -> PreparedContext:
        """Prepares one observation of a published batch, which mixes embodiments, as its version does."""
        one = slice(row, row + 1)
        context, state = inputs["backbone_features"][one], inputs["state"][one].flatten(1)
        everything = torch.ones(context.shape[:2], dtype=torch.bool)
        # No version masks padded vision-language tokens out but by the alternation of N1.7.
        prepared = self.head.prepare(context, everything, state, None, name)
        if not self.text_every:
            return prepared
        image, valid = inputs["image_mask"][one], inputs["backbone_attention_mask"][one]
        blocks = range(len(prepared.key_values))
        masks = [valid & (~image if block % self.text_every == 0 else image) for block in blocks]
        return PreparedContext(prepared.key_values, masks, prepared.state)

    @torch.no_grad()
    def loss_and_sample(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Computes the masked flow-matching loss and the Euler sample of a published batch.

        Args:
            inputs: ``backbone_features`` [B, L, C], ``state`` [B, history, S], ``action``, ``action_mask``, ``noise``
                [B, T, D], ``time`` [B], ``embodiment_id`` [B], and for N1.7 ``image_mask`` and
                ``backbone_attention_mask`` [B, L].

        Returns:
            The loss, float [], and the actions, float [B, T, D].
        """
        x, target = interpolate(inputs["action"], inputs["noise"], inputs["time"])
        predicted, sampled = [], []
        for row, index in enumerate(inputs["embodiment_id"].tolist()):
            name, one = slot_name(index), slice(row, row + 1)
            prepared = self.prepare(inputs, row, name)
            predicted.append(self.head.velocity(x[one], time_bucket(inputs["time"][one]), prepared, name))
            sampled.append(self.head.sample(prepared, inputs["noise"][one], name))
        loss = masked_mean(torch.cat(predicted), target, inputs["action_mask"], self.loss_epsilon)
        return loss, torch.cat(sampled)


def read_head(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PublishedHead:
    """Builds our head from a published configuration and its weights, names without the prefix ``action_head.``.

    Raises:
        DataError: a key of the configuration is missing or asks for what no release has, or a weight is missing,
            unknown or of another shape; it is named.
    """
    try:
        head_config, bodies = _sizes(config, weights)
        context_width = int(config["backbone_embedding_dim"])
    except KeyError as error:
        raise DataError(f"the published head's configuration or weights lack {error}") from error
    head = build_action_head(head_config, context_width, bodies).eval()
    ours = dict(rename_weights(weights, list(bodies), _OTHERS))
    ours["unknown_state"] = head.unknown_state.detach()  # No release has one.
    ours.setdefault("position", torch.zeros_like(head.position))
    try:
        head.load_state_dict(ours)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise DataError(f"the published weights do not fit their configuration: {detail}") from error
    n1_7 = "use_alternate_vl_dit" in config
    every = int(config.get("attend_text_every_n_blocks", 2)) if config.get("use_alternate_vl_dit") else 0
    return PublishedHead(head, every, _N1_7_EPSILON if n1_7 else 0.0)


def _sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[HeadConfig, dict[str, Embodiment]]:
    dit = config["diffusion_model_cfg"]
    mixer = config.get("vl_self_attention_cfg") or {"num_layers": 0, "num_attention_heads": 1}
    for stack in (dit, mixer):
        if stack.get("positional_embeddings") is not None or stack.get("norm_type", "ada_norm") != "ada_norm":
            raise DataError(f"a published head with {dict(stack)} is not known here")
    if not dit.get("interleave_self_attention", False):
        raise DataError("a published head without interleaved self-attention is not known here")
    head = HeadConfig(
        width=int(config["input_embedding_dim"]),
        layers=int(dit["num_layers"]),
        heads=int(dit["num_attention_heads"]),
        hidden=int(config["hidden_size"]),
        context_norm="vlln.weight" in weights,
        context_layers=int(mixer["num_layers"]),
        context_heads=int(mixer["num_attention_heads"]),
        future_tokens=len(weights["future_tokens.weight"]) if "future_tokens.weight" in weights else 0,
        max_horizon=int(config["max_seq_len"]) if config.get("add_pos_embed", True) else int(config["action_horizon"]),
        sample_steps=int(config["num_inference_timesteps"]),
    )
    body: dict[str, Any] = {
        "state_dim": int(weights["state_encoder.layer1.W"].shape[1]),
        "action_dim": int(weights["action_encoder.W1.W"].shape[1]),
        "horizon": int(config["action_horizon"]),
        "rate_hz": 1.0,
    }
    names = [slot_name(i) for i in range(len(weights["state_encoder.layer1.W"]))]
    return head, {name: Embodiment(name=name, **body) for name in names}
