"""The published action heads once more, as plainly as they can be written: files of reference vectors of any size.

Every weight is made here under its published name; attention is three matrix products and a softmax, every sample
gathers its own slot's weights, padding is attended to as the releases do.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F


@dataclass(kw_only=True)
class Plain:
    """A random head of one version and what it computes."""

    version: str
    seed: int
    width: int = 24
    heads: int = 2
    hidden: int = 20
    layers: int = 4
    context: int = 16
    mixer_layers: int = 0
    mixer_heads: int = 2
    future: int = 0
    alternate: bool = False
    text_every: int = 2
    history: int = 1
    horizon: int = 5
    action_dim: int = 3
    state_dim: int = 4
    slots: int = 3
    steps: int = 4
    batch: int = 4
    length: int = 9
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = torch.Generator().manual_seed(self.seed)
        self._stack("model", self.width, self.layers, cross=True)
        for name, (i, o) in {
            "model.timestep_encoder.timestep_embedder.linear_1": (256, self.width),
            "model.timestep_encoder.timestep_embedder.linear_2": (self.width, self.width),
            "model.proj_out_1": (self.width, 2 * self.width),
            "model.proj_out_2": (self.width, self.hidden),
        }.items():
            self._linear(name, i, o)
        tables = {
            "state_encoder.layer1": (self.state_dim * self.history, self.hidden),
            "state_encoder.layer2": (self.hidden, self.width),
            "action_encoder.W1": (self.action_dim, self.width),
            "action_encoder.W2": (2 * self.width, self.width),
            "action_encoder.W3": (self.width, self.width),
            "action_decoder.layer1": (self.hidden, self.hidden),
            "action_decoder.layer2": (self.hidden, self.action_dim),
        }
        for name, (i, o) in tables.items():
            self.weights[f"{name}.W"] = self._normal(self.slots, i, o) * 0.2
            self.weights[f"{name}.b"] = self._normal(self.slots, o) * 0.2
        self.weights["position_embedding.weight"] = self._normal(self.horizon + 2, self.width) * 0.1
        if self.version != "n1":
            self.weights["vlln.weight"] = 1 + 0.1 * self._normal(self.context)
            self.weights["vlln.bias"] = 0.1 * self._normal(self.context)
            self._stack("vl_self_attention", self.context, self.mixer_layers, cross=False)
        if self.future:
            self.weights["future_tokens.weight"] = self._normal(self.future, self.width)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw)

    def _linear(self, name: str, i: int, o: int) -> None:
        self.weights[f"{name}.weight"] = self._normal(o, i) / math.sqrt(i)
        self.weights[f"{name}.bias"] = self._normal(o) * 0.1

    def _stack(self, prefix: str, width: int, layers: int, *, cross: bool) -> None:
        for i in range(layers):
            name = f"{prefix}.transformer_blocks.{i}"
            seen = self.context if cross and i % 2 == 0 else width
            if cross:
                self._linear(f"{name}.norm1.linear", width, 2 * width)
            else:
                for norm in ("norm1", "norm3"):
                    self.weights[f"{name}.{norm}.weight"] = 1 + 0.1 * self._normal(width)
                    self.weights[f"{name}.{norm}.bias"] = 0.1 * self._normal(width)
            self._linear(f"{name}.attn1.to_q", width, width)
            self._linear(f"{name}.attn1.to_k", seen, width)
            self._linear(f"{name}.attn1.to_v", seen, width)
            self._linear(f"{name}.attn1.to_out.0", width, width)
            self._linear(f"{name}.ff.net.0.proj", width, 4 * width)
            self._linear(f"{name}.ff.net.2", 4 * width, width)

    def _apply(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _slot(self, name: str, x: Tensor, ids: Tensor) -> Tensor:
        return torch.bmm(x, self.weights[f"{name}.W"][ids]) + self.weights[f"{name}.b"][ids][:, None]

    def _attend(self, name: str, x: Tensor, seen: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        q, k, v = (self._apply(f"{name}.attn1.to_{p}", t) for p, t in (("q", x), ("k", seen), ("v", seen)))
        out = []
        for head in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
            score = head[0] @ head[1].transpose(1, 2) / math.sqrt(head[0].shape[-1])
            if mask is not None:
                score = score.masked_fill(~mask[:, None], -torch.inf)
            out.append(score.softmax(-1) @ head[2])
        return self._apply(f"{name}.attn1.to_out.0", torch.cat(out, dim=-1))

    def _forward(self, name: str, x: Tensor) -> Tensor:
        return self._apply(f"{name}.ff.net.2", F.gelu(self._apply(f"{name}.ff.net.0.proj", x), approximate="tanh"))

    def processed(self, features: Tensor) -> Tensor:
        if self.version == "n1":
            return features
        x = F.layer_norm(features, (self.context,), self.weights["vlln.weight"], self.weights["vlln.bias"])
        for i in range(self.mixer_layers):
            name = f"vl_self_attention.transformer_blocks.{i}"
            norms = [(self.weights[f"{name}.{n}.weight"], self.weights[f"{name}.{n}.bias"]) for n in ("norm1", "norm3")]
            normed = F.layer_norm(x, (self.context,), *norms[0])
            x = x + self._attend(name, normed, normed, self.mixer_heads, None)
            x = x + self._forward(name, F.layer_norm(x, (self.context,), *norms[1]))
        return x

    def _dit(self, x: Tensor, context: Tensor, bucket: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        angle = bucket.float()[:, None] * torch.exp(torch.arange(128) * (-math.log(10000.0) / 127))
        time = torch.cat([angle.cos(), angle.sin()], dim=-1)
        first, second = (f"model.timestep_encoder.timestep_embedder.linear_{i}" for i in (1, 2))
        time = F.silu(self._apply(second, F.silu(self._apply(first, time))))
        for i in range(self.layers):
            name = f"model.transformer_blocks.{i}"
            scale, shift = self._apply(f"{name}.norm1.linear", time)[:, None].chunk(2, dim=-1)
            normed = F.layer_norm(x, (self.width,)) * (1 + scale) + shift
            mask = None
            if self.alternate and i % 2 == 0:
                text = i % (2 * self.text_every) == 0
                valid, image = inputs["backbone_attention_mask"], inputs["image_mask"]
                mask = valid & (~image if text else image)
            x = x + self._attend(name, normed, context if i % 2 == 0 else normed, self.heads, mask)
            x = x + self._forward(name, F.layer_norm(x, (self.width,)))
        shift, scale = self._apply("model.proj_out_1", time)[:, None].chunk(2, dim=-1)
        return self._apply("model.proj_out_2", F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale) + shift)

    def velocity(self, x: Tensor, bucket: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        ids = inputs["embodiment_id"]
        state = inputs["state"].reshape(len(x), 1, -1)
        token = self._slot("state_encoder.layer2", F.relu(self._slot("state_encoder.layer1", state, ids)), ids)
        angle = bucket.float()[:, None] * 10000.0 ** (-torch.arange(self.width // 2) / (self.width // 2))
        time = torch.cat([angle.sin(), angle.cos()], dim=-1)[:, None].expand(-1, self.horizon, -1)
        inner = torch.cat([self._slot("action_encoder.W1", x, ids), time], dim=-1)
        action = self._slot("action_encoder.W3", F.silu(self._slot("action_encoder.W2", inner, ids)), ids)
        parts = [token, action + self.weights["position_embedding.weight"][: self.horizon]]
        if self.future:
            parts.insert(1, self.weights["future_tokens.weight"].expand(len(x), -1, -1))
        out = self._dit(torch.cat(parts, dim=1), self.processed(inputs["backbone_features"]), bucket, inputs)
        out = self._slot("action_decoder.layer2", F.relu(self._slot("action_decoder.layer1", out, ids)), ids)
        return out[:, -self.horizon :]

    def inputs(self) -> dict[str, Tensor]:
        chunk = (self.batch, self.horizon, self.action_dim)
        valid = (
            torch.arange(self.length)[None] < torch.tensor([self.length - i % 3 for i in range(self.batch)])[:, None]
        )
        image = (torch.arange(self.length) < self.length // 2)[None].expand(self.batch, -1)
        mask = torch.rand(chunk, generator=self.draw) < 0.7
        time = torch.linspace(-0.001 if self.version in ("n1", "n1_5") else 0.0, 0.998, self.batch)
        return {
            "backbone_features": self._normal(self.batch, self.length, self.context),
            "backbone_attention_mask": valid, "image_mask": image.contiguous(), "time": time,
            "state": self._normal(self.batch, self.history, self.state_dim), "action": self._normal(*chunk),
            "action_mask": mask.float(), "noise": self._normal(*chunk),
            "embodiment_id": torch.arange(self.batch) % self.slots,
        }  # fmt: skip

    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        t = inputs["time"][:, None, None]
        x = (1 - t) * inputs["noise"] + t * inputs["action"]
        error = self.velocity(x, (inputs["time"] * 1000).long(), inputs) - (inputs["action"] - inputs["noise"])
        epsilon = 1e-6 if self.version in ("n1_6", "n1_7") else 0.0
        loss = (error**2 * inputs["action_mask"]).sum() / (inputs["action_mask"].sum() + epsilon)
        x = inputs["noise"]
        for step in range(self.steps):
            bucket = torch.full((self.batch,), int(step / self.steps * 1000))
            x = x + (1.0 / self.steps) * self.velocity(x, bucket, inputs)
        return {"loss": loss, "action_pred": x}

    def config(self) -> dict[str, Any]:
        dit = {
            "num_attention_heads": self.heads, "attention_head_dim": self.width // self.heads, "dropout": 0.2,
            "num_layers": self.layers, "output_dim": self.hidden, "norm_type": "ada_norm",
            "interleave_self_attention": True, "positional_embeddings": None, "final_dropout": True,
        }  # fmt: skip
        mixer = {
            "num_attention_heads": self.mixer_heads, "attention_head_dim": self.context // self.mixer_heads,
            "num_layers": self.mixer_layers, "positional_embeddings": None, "dropout": 0.2, "final_dropout": True,
        }  # fmt: skip
        later = {"use_alternate_vl_dit": self.alternate, "attend_text_every_n_blocks": self.text_every}
        if self.version == "n1_7":
            later["state_history_length"] = self.history
        return {
            "hidden_size": self.hidden, "input_embedding_dim": self.width, "max_state_dim": self.state_dim,
            "action_dim": self.action_dim, "max_action_dim": self.action_dim, "action_horizon": self.horizon,
            "num_inference_timesteps": self.steps, "max_num_embodiments": self.slots, "add_pos_embed": True,
            "max_seq_len": self.horizon + 2, "num_timestep_buckets": 1000, "backbone_embedding_dim": self.context,
            "diffusion_model_cfg": dit, **({"vl_self_attention_cfg": mixer} if self.version != "n1" else {}),
            **(later if self.version in ("n1_6", "n1_7") else {}),
        }  # fmt: skip

    def save(self, path: Path) -> Path:
        inputs = self.inputs()
        tensors = {f"param.{k}": v for k, v in self.weights.items()}
        tensors |= {f"input.{k}": v for k, v in inputs.items()}
        tensors |= {f"output.{k}": v for k, v in self.outputs(inputs).items()}
        note = json.dumps({"model": f"plain {self.version}", "config": self.config(), "note": ""})
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"json": note})
        return path
