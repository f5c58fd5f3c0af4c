"""The model card of a policy: what it is, what it acts for, what it was trained on, how to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pyramid import files
from pyramid.nn.hub import CARD_FILE
from pyramid.types import Embodiment
from vla.config import PolicyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from pyramid.mixture.batch import MixtureStream
    from pyramid.nn.trainer import TrainerConfig

__all__ = ["described", "model_card", "write_card"]


class Described(Protocol):
    """What is told of a policy."""

    config: PolicyConfig
    adapters: dict[str, Any] | None
    mixture: dict[str, Any] | None

    @property
    def embodiments(self) -> Mapping[str, Embodiment]:
        """The declared embodiments by name."""
        ...

    def parameters(self) -> Iterable[Tensor]:
        """Its weights."""
        ...


def write_card(policy: Described, folder: str) -> None:
    """Writes the card of a policy into its folder."""
    files.make_dirs(folder)
    files.write_bytes(files.join(folder, CARD_FILE), model_card(policy).encode())


def described(stream: MixtureStream, config: TrainerConfig, init_from: str | None) -> dict[str, Any]:
    """Returns what a policy is trained on, as plain data for its config and its card."""
    rows = [
        {
            "tier": s.tier,
            "name": s.name,
            "use": s.spec.use,
            "embodiment": s.embodiment.name,
            "hours": s.hours,
            "share": float(stream.typical_shares[s.name]),
        }
        for s in stream.sources
    ]
    return {
        "digest": stream.data_digest,
        "steps": config.max_steps,
        "samples_per_step": config.samples_per_step,
        "init_from": init_from,
        "sources": rows,
    }


def model_card(policy: Described) -> str:
    """Returns the card: Markdown with the header that the hub reads."""
    head, backbone = policy.config.head, policy.config.backbone
    count = sum(p.numel() for p in policy.parameters())
    return f"""---
library_name: latent-pyramid
pipeline_tag: robotics
tags:
- robotics
- vision-language-action
---

# Vision-language-action policy

From views, an instruction and the robot's state to a chunk of actions in physical units.

- System 2: {backbone.kind}{f" from {backbone.pretrained}" if backbone.pretrained else ", made from its sizes"}, \
language layer {backbone.tap_layer}, {backbone.n_views} view(s) of {backbone.image_size_px} px
- System 1: diffusion transformer, {head.layers} blocks of width {head.width}, {head.sample_steps} flow-matching steps
- {count:,} parameters{", with low-rank adapters kept apart" if policy.adapters else ""}

## Embodiments

| name | actions are | state | action | steps of a chunk | rate |
|---|---|---|---|---|---|
{_bodies(policy)}

## Training data

{_mixture(policy.mixture)}

## Use

```
from vla.policy import Policy

policy = Policy.from_pretrained("this folder or id")
actions = policy.act({{"images": views, "text": "what to do", "state": state}}, embodiment="{min(policy.embodiments)}")
```

`config.json` says everything that it was trained with. Nothing is promised about robots, views, rates or tasks unlike
those of the training data: measure with `pyramid evaluate vla` before it moves anything.
"""


def _bodies(policy: Described) -> str:
    kinds = {"action": "measured", "pseudo": "inferred", "latent": "latent"}
    return "\n".join(
        f"| {name} | {kinds[e.label]} | {' x '.join(map(str, e.state_shape))} | {e.action_dim} | {e.horizon} | "
        f"{e.rate_hz:g} Hz |"
        for name, e in sorted(policy.embodiments.items())
    )


def _mixture(mixture: dict[str, Any] | None) -> str:
    if mixture is None:
        return "Not known."
    rows = "\n".join(
        f"| {s['tier']} | {s['name']} | {s['use']} | {s['embodiment']} | {s['hours']:.3g} | {s['share']:.3g} |"
        for s in mixture["sources"]
    )
    steps = f"{mixture['steps']:,} steps of {mixture['samples_per_step']:,} samples"
    begun = f", begun from `{mixture['init_from']}`" if mixture.get("init_from") else ""
    return f"""{steps}{begun}; mixture `{mixture["digest"][:16]}`.

| tier | source | learned from it | embodiment | hours | share of samples |
|---|---|---|---|---|---|
{rows}"""
