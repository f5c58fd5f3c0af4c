"""Low-rank adapters on the language layers of a backbone, by peft: put in, merged, saved apart."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import nn

from pyramid.errors import ConfigError, MissingDependencyError
from vla.backbone import Backbone
from vla.tuning.config import LoraSpec

__all__ = ["add_lora", "merge_lora"]


class Adaptable(Protocol):
    """A policy, as far as it matters here."""

    backbone: Backbone
    adapters: dict[str, Any] | None


P = TypeVar("P", bound=Adaptable)


def add_lora(policy: Adaptable, spec: LoraSpec) -> None:
    """Puts adapters into the language layers and freezes the layers; a fresh adapter changes no output.

    Raises:
        MissingDependencyError: peft is not there.
        ConfigError: no layer of that name.
    """
    peft = _peft()
    names = {name.rpartition(".")[2] for name, m in policy.backbone.layers.named_modules() if isinstance(m, nn.Linear)}
    unknown = sorted(set(spec.targets) - names)
    if unknown:
        raise ConfigError(
            f"tune.lora.targets: the language layers have no linear layer '{unknown[0]}'; they have "
            f"{', '.join(sorted(names))}"
        )
    adapters = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.targets))
    peft.inject_adapter_in_model(adapters, policy.backbone.layers)
    policy.backbone.layers.to(next(policy.backbone.parameters()).device)
    policy.adapters = {"rank": spec.rank, "alpha": spec.alpha, "targets": list(spec.targets)}


def merge_lora(policy: P) -> P:
    """Adds the adapters to the weights, in place, so that a plain policy is left; returns it."""
    if policy.adapters is None:
        return policy
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(policy.backbone.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    policy.adapters = None
    return policy


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(
            "adapters need peft, which is not installed: pip install 'latent-pyramid[lora]'"
        ) from error
    return peft
