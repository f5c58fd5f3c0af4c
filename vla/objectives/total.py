"""The training loss of a batch that mixes embodiments: flow matching, foreseeing and latent tokens, weighted.

The terms are in the files beside this one; the order of samples is the mixture's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyramid.errors import ConfigError
from vla.objectives.config import ObjectivesConfig
from vla.objectives.flare import Flare
from vla.objectives.flow import draw, encode_groups, flow_error
from vla.objectives.tokens import LatentTokens
from vla.objectives.trunk import run_trunk
from vla.objectives.weights import flow_weights, source_weights
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["Objectives", "batch_loss"]

Terms = dict[str, Tensor]


def batch_loss(policy: Policy, batch: Sequence[Group], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Computes the flow-matching loss of one batch alone; see `Objectives.loss`."""
    return Objectives(ObjectivesConfig(), policy).loss(policy, batch, generator)


class Objectives(nn.Module):
    """What a policy is trained for. Its own weights (projector, learned target, code head) are no part of the policy.

    Args:
        config: which terms.
        policy: the policy to be trained.

    Raises:
        ConfigError: a term that the policy cannot serve.
    """

    def __init__(self, config: ObjectivesConfig, policy: Policy) -> None:
        super().__init__()
        self.config = config
        self.flare = Flare(config.flare, policy) if config.flare.weight else None
        self.tokens = LatentTokens(config.tokens, policy.backbone.width) if config.tokens.weight else None
        if self.tokens is not None and not any(p.requires_grad for p in policy.backbone.parameters()):
            raise ConfigError(
                "objectives.tokens teaches the backbone, and none of its weights trains; "
                "tune some of it, or set objectives.tokens.weight: 0"
            )

    def update(self) -> None:
        """Moves what follows the trained weights; to be called once between two steps."""
        if self.flare is not None and self.flare.aware is not None:
            self.flare.aware.update()

    def loss(
        self, policy: Policy, batch: Sequence[Group], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss of one batch.

        A sample's flow-matching loss is the mean squared velocity error over the elements that its mask keeps. Each
        term is the weighted mean over the samples that have it: those with any action, with a known future, with
        codes. Averaging per sample first keeps embodiments with long or wide chunks from outvoting the others.

        Args:
            policy: in training mode.
            batch: groups, one per embodiment.
            generator: a CPU generator, the only source of randomness (but for dropout).

        Returns:
            The loss, float [], and what to log: ``loss_flow``, ``loss_future``, ``loss_tokens``, ``loss_target``; the
            first two per source and the first per embodiment as ``loss_source/NAME``, ``future_source/NAME``,
            ``loss_body/NAME``; each source's share of the samples and of the weight in the flow-matching loss as
            ``share/NAME`` and ``weight_share/NAME``.
        """
        sums = _Sums()
        for group in batch:
            sums.count(group)
        pairs = [
            (group, encoded)
            for group, encoded in zip(batch, encode_groups(policy, batch), strict=True)
            if self.flare is not None or _label(policy, group) != "video"
        ]
        drawn, taught = [], []
        for group, encoded in pairs:
            drawn.append(draw(policy, group, encoded, generator))
            taught.append(self._teach(policy, group, generator))
        layer = self.config.flare.layer if self.flare is not None else None
        passes = run_trunk(policy, [one.tokens for one in drawn], layer) if drawn else []
        for (group, encoded), one, passed, target in zip(pairs, drawn, passes, taught, strict=True):
            label = _label(policy, group)
            if label != "video":
                weight = flow_weights(group, policy.processor.body(group.embodiment), self.config.weights)
                sums.add_errors("flow", group, flow_error(policy, group, one, passed), weight)
            if self.flare is not None and passed.future is not None:
                each, known = self.flare.errors(passed.future, group)
                weight = source_weights(group, self.config.weights)
                sums.add("future", group, each, torch.where(known, weight.to(each), 0.0))
            if target is not None:
                sums.add_errors("target", group, target, source_weights(group, self.config.weights))
            if self.tokens is not None and label == "latent":
                each = self.tokens.errors(group, encoded)
                sums.add("tokens", group, each, source_weights(group, self.config.weights).to(each))
        terms = sums.terms()
        if not terms:
            raise ConfigError("videos alone teach nothing without foreseeing: set objectives.flare.weight above 0")
        factor = {"future": self.config.flare.weight, "tokens": self.config.tokens.weight}
        loss = torch.stack([factor.get(name, 1.0) * value for name, value in terms.items()]).sum()
        logs = {f"loss_{name}": float(value.detach()) for name, value in terms.items()}
        return loss, logs | sums.logs()

    def _teach(self, policy: Policy, group: Group, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        if self.flare is None or self.flare.aware is None or _label(policy, group) == "video":
            return None
        return self.flare.teach(policy, group, generator)


def _label(policy: Policy, group: Group) -> str:
    """Returns what a group's actions are; only videos have none at all, and no slot."""
    return "video" if not group.action.shape[-1] else policy.processor.body(group.embodiment).embodiment.label


@dataclass
class _Sums:
    """Losses and weights of all groups, by term."""

    values: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    weights: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    shown: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    drawn: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    weighed: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def count(self, group: Group) -> None:
        """Takes in which sources a group comes from."""
        for source in group.source:
            self.drawn[source] += 1

    def add(self, term: str, group: Group, each: Tensor, weight: Tensor) -> None:
        """Takes in a term of a group: losses and weights float [B]; what counts nothing is not shown."""
        self.values[term].append(each)
        self.weights[term].append(weight)
        prefix = {"flow": "loss_source", "future": "future_source"}.get(term)
        if prefix is None:
            return
        kept = (weight > 0).tolist()
        for value, w, source, keep in zip(each.detach(), weight.detach(), group.source, kept, strict=True):
            if keep:
                self.shown[f"{prefix}/{source}"].append(value)
                if term == "flow":
                    self.shown[f"loss_body/{group.embodiment}"].append(value)
                    self.weighed[source].append(w)

    def add_errors(self, term: str, group: Group, errors: tuple[Tensor, Tensor], weight: Tensor) -> None:
        """Takes in sums of errors and of counted elements, float [B] each; a sample that has none counts nothing."""
        error, count = errors
        self.add(term, group, error / count.clamp(min=1.0), torch.where(count > 0, weight.to(error), 0.0))

    def terms(self) -> Terms:
        """Returns the weighted mean of each term, float []; 0 where no sample has it."""
        found = {}
        for name, values in self.values.items():
            weight = torch.cat(self.weights[name])
            found[name] = (torch.cat(values) * weight).sum() / weight.sum().clamp(min=1e-8)
        return found

    def logs(self) -> dict[str, float]:
        """Returns means and shares by source and embodiment."""
        found = {name: float(torch.stack(values).mean()) for name, values in sorted(self.shown.items())}
        total = sum(self.drawn.values())
        found |= {f"share/{name}": n / total for name, n in sorted(self.drawn.items())}
        weight = {name: float(torch.stack(w).sum()) for name, w in self.weighed.items()}
        all_weight = max(sum(weight.values()), 1e-8)
        return found | {f"weight_share/{name}": w / all_weight for name, w in sorted(weight.items())}
