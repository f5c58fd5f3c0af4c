"""Published GR00T action heads read into ours: their weights, their configuration, their quirks.

Facts are those of the public Apache-2.0 code of GR00T N1, N1.5 and N1.7 (arXiv 2503.14734); no code of it is used. What
each version does differently from what is right is `vla.config.Compatibility`. Whole folders are `vla.gr00t_folder`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyramid.errors import DataError
from pyramid.nn.published import rename_weights, slot_name
from pyramid.types import Embodiment
from vla.action_head import ActionHead, PreparedContext, build_action_head
from vla.config import Compatibility, HeadConfig

__all__ = ["PublishedHead", "head_weights", "read_head", "read_sizes"]

_OTHERS = {
    "vlln": "context_norm",
    "position_embedding.weight": "position",
    "future_tokens.weight": "future",
    "mask_token": "unknown_state",
}
_N1_7_EPSILON = 1e-6
"""Added to the mask's sum in the loss of N1.6 and N1.7."""
_USUAL = {
    "positional_embeddings": None,
    "norm_type": "ada_norm",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
"""What every release's stacks have; another value is refused."""


@dataclass(frozen=True)
class PublishedHead:
    """A published head as ours; its configuration says which version's way it does things."""

    head: ActionHead
    """Our head with the published weights; one embodiment per published slot."""

    @property
    def loss_epsilon(self) -> float:
        """Added to the mask's sum in the loss."""
        return _N1_7_EPSILON if self.head.config.compatibility in ("n1_6", "n1_7") else 0.0

    def prepare(self, inputs: Mapping[str, Tensor], row: int, name: str) -> PreparedContext:
        """Prepares one observation of a published batch, which mixes embodiments, as its version does."""
        one = slice(row, row + 1)
        context, images = inputs["backbone_features"][one], inputs.get("image_mask")
        mask = inputs.get("backbone_attention_mask", torch.ones(inputs["backbone_features"].shape[:2]))[one].bool()
        chosen = None if images is None else images[one].bool()
        return self.head.prepare(context, mask, inputs["state"][one], None, name, images=chosen)

    @torch.no_grad()
    def loss_and_sample(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Computes the masked flow-matching loss and the Euler sample of a published batch.

        Args:
            inputs: ``backbone_features`` [B, L, C], ``state`` [B, history, S], ``action``, ``action_mask``, ``noise``
                [B, T, D], ``time`` [B], ``embodiment_id`` [B], ``backbone_attention_mask`` [B, L], and for alternating
                attention ``image_mask`` [B, L].

        Returns:
            The loss, float [], and the actions, float [B, T, D].
        """
        error, count, sampled = [], [], []
        for row, index in enumerate(inputs["embodiment_id"].tolist()):
            name, one = slot_name(index), slice(row, row + 1)
            prepared, mask = self.prepare(inputs, row, name), inputs["action_mask"][one].bool()
            draws = {"noise": inputs["noise"][one], "time": inputs["time"][one]}
            parts = self.head.errors(prepared, inputs["action"][one], mask, name, **draws)
            error.append(parts[0])
            count.append(parts[1])
            sampled.append(self.head.sample(prepared, inputs["noise"][one], name))
        loss = torch.cat(error).sum() / (torch.cat(count).sum() + self.loss_epsilon)
        return loss, torch.cat(sampled)


def read_head(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], image_spans: Sequence[tuple[int, int]] = ()
) -> PublishedHead:
    """Builds our head from a published configuration and its weights, names without the prefix ``action_head.``.

    Raises:
        DataError: a key of the configuration is missing or asks for what no release has, or a weight is missing,
            unknown or of another shape; it is named.
    """
    head_config, bodies, context_width = read_sizes(config, weights)
    head = build_action_head(head_config, context_width, bodies, image_spans).eval()
    try:
        head.load_state_dict(head_weights(head, weights, list(bodies)))
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise DataError(f"the published weights do not fit their configuration: {detail}") from error
    return PublishedHead(head)


def head_weights(head: ActionHead, weights: Mapping[str, Tensor], slots: Sequence[str]) -> dict[str, Tensor]:
    """Returns published weights under our names, and what no release has as a fresh head has it.

    Args:
        head: one that they are meant for.
        weights: by published name, without the prefix.
        slots: our names of all published slots, in their order.
    """
    ours = dict(rename_weights(weights, slots, _OTHERS))
    if "unknown_state" in ours:
        ours["unknown_state"] = ours["unknown_state"].flatten()
    elif head.config.unknown_state == "learned":
        ours["unknown_state"] = torch.zeros_like(head.unknown_state)  # No release but N1.6 has one.
    ours.setdefault("position", torch.zeros_like(head.position))
    return ours


def read_sizes(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[HeadConfig, dict[str, Embodiment], int]:
    """Reads a published configuration: our head's sizes, an embodiment per slot, the context's width.

    Raises:
        DataError: something is missing, or is as in no release; it is named.
    """
    try:
        return *_sizes(config, weights), int(config["backbone_embedding_dim"])
    except KeyError as error:
        raise DataError(f"the published head's configuration or weights lack {error}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"the published head's configuration cannot be read: {error}") from error


def _sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[HeadConfig, dict[str, Embodiment]]:
    dit = config["diffusion_model_cfg"]
    mixer = config.get("vl_self_attention_cfg") or {"num_layers": 0, "num_attention_heads": 1}
    for stack in (dit, mixer):
        odd = {key: stack[key] for key, usual in _USUAL.items() if stack.get(key, usual) != usual}
        if odd:
            raise DataError(f"a published head with {odd} is not known here")
    if int(config.get("num_timestep_buckets", 1000)) != 1000:
        raise DataError(f"a published head with num_timestep_buckets={config['num_timestep_buckets']} is not known")
    alternate, history = bool(config.get("use_alternate_vl_dit")), int(config.get("state_history_length", 1))
    version = _version(config, weights)
    head = HeadConfig(
        width=int(config["input_embedding_dim"]),
        layers=int(dit["num_layers"]),
        heads=int(dit["num_attention_heads"]),
        hidden=int(config["hidden_size"]),
        dropout=float(dit.get("dropout", 0.0)),
        interleave=bool(dit.get("interleave_self_attention", False)),
        context_norm="vlln.weight" in weights,
        context_layers=int(mixer["num_layers"]),
        context_heads=int(mixer["num_attention_heads"]),
        future_tokens=len(weights["future_tokens.weight"]) if "future_tokens.weight" in weights else 0,
        alternate=alternate,
        text_every=int(config.get("attend_text_every_n_blocks", 2)),
        max_horizon=int(config["max_seq_len"]) if config.get("add_pos_embed", True) else int(config["action_horizon"]),
        sample_steps=int(config["num_inference_timesteps"]),
        time_rule="n1_6" if version in ("n1_6", "n1_7") else "n1",
        state_dropout=min(float(config.get("state_dropout_prob", 0.0)), 0.99),
        unknown_state="learned" if "mask_token" in weights else "zeros",
        state_history=history,
        compatibility=version,
    )
    body: dict[str, Any] = {
        "state_dim": int(weights["state_encoder.layer1.W"].shape[1]) // history,
        "action_dim": int(weights["action_encoder.W1.W"].shape[1]),
        "horizon": int(config["action_horizon"]),
        "rate_hz": 1.0,
    }
    names = [slot_name(i) for i in range(len(weights["state_encoder.layer1.W"]))]
    return head, {name: Embodiment(name=name, **body) for name in names}


def _version(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Compatibility:
    if "use_alternate_vl_dit" in config or "state_history_length" in config:
        return "n1_7" if "state_history_length" in config else "n1_6"
    return "n1_5" if "future_tokens.weight" in weights or "vlln.weight" in weights else "n1"
