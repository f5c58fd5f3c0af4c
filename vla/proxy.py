"""The proxy ``vla`` of `pyramid mix tune`: a policy trained for a few steps, and its error on held-out episodes.

Which mixtures are tried and what their losses mean is left to `pyramid.mixture.tune`; this file is its entry point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import Group, MixtureStream, open_mixture
from pyramid.mixture.schedule import Schedule
from pyramid.mixture.spec import MixtureSpec, read_mixture, with_weights
from pyramid.mixture.tune.proxy import ProxyRun, Rule, SourceSize
from pyramid.progress import say
from pyramid.rng import rng, seed_of, torch_generator
from pyramid.types import Split
from vla.config import VLAConfig
from vla.objectives.flow import encode_groups, group_error
from vla.objectives.total import batch_loss
from vla.policy import Policy, build_policy
from vla.processor import read_bodies
from vla.train import VLAModule

__all__ = ["VLAProxy", "load"]

VERSION = 1
TRAIN_ITEMS, VAL_ITEMS = 2048, 256
"""Most samples of a source that are held in memory to train on and to measure with: the first of its keyed order."""
_CHUNK = 64


class VLAProxy:
    """A small policy as a proxy; a `ReweightedProxy`.

    Losses are flow-matching errors per source on its held-out episodes, with the same noise for every run, in
    normalised action units; a source without held-out episodes is trained on but is no target.

    Args:
        mixture: mixture file; its weights have no influence.
        config: policy and trainer; the trainer's ``max_steps`` and ``seed`` are set by each run.
    """

    name = "vla"

    def __init__(self, mixture: str, config: VLAConfig) -> None:
        self.config, self.spec = config, read_mixture(mixture)
        self.sources = list(self.spec.shares())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        self._all = self._open({name: 1.0 for name in self.sources})
        silent = [source.name for source in self._all.sources if source.embodiment.label == "video"]
        if silent:
            raise ConfigError(f"source '{silent[0]}' has no actions (use: video), by whose error a mixture is chosen")
        self._bodies = read_bodies(self._all.embodiments, self._all.statistics)

    def _open(self, weights: Mapping[str, float], split: Split = "train") -> MixtureStream:
        spec: MixtureSpec = with_weights(self.spec, weights)
        size = self.config.policy.backbone.image_size_px
        return open_mixture(spec, batch_size=1, image_size=size, split=split)

    def digest(self) -> str:
        """Returns the digest of data, config and this file's version."""
        return files.digest([self.name, VERSION, TRAIN_ITEMS, VAL_ITEMS, to_dict(self.config), self._all.digest])

    def sizes(self) -> dict[str, SourceSize]:
        """Returns training samples and hours of every source."""
        found = {source.name: source for source in self._all.sources}
        return {name: SourceSize(items=len(found[name]), hours=found[name].hours) for name in self.sources}

    def targets(self) -> list[str]:
        """Returns the sources with held-out episodes."""
        return list(self._val)

    @cached_property
    def _train(self) -> dict[str, Group]:
        return {name: self._pool(name, "train", TRAIN_ITEMS) for name in self.sources}

    @cached_property
    def _val(self) -> dict[str, Group]:
        found = {}
        for name in self.sources:
            try:
                found[name] = self._pool(name, "val", VAL_ITEMS)
            except DataError as error:
                say(f"'{name}' is no target: {error}")
        if not found:
            raise DataError("no source has held-out episodes to measure with; scan with a --val-share above 0")
        return found

    def _pool(self, name: str, split: Split, most: int) -> Group:
        """Reads the first samples of a source's keyed order into one group."""
        stream = self._open({name: 1.0}, split)
        n = min(len(stream.sources[0]), most)
        return _joined([stream.batch(step)[0] for step in range(n)], self.device)

    def _items(self, run: ProxyRun) -> dict[str, NDArray[np.int64]]:
        """Returns which samples of each pool a run may see: all, or those of a keyed part of the clips."""
        found = {}
        for name, pool in self._train.items():
            keys = list(dict.fromkeys(pool.key))
            share = run.fractions.get(name, 1.0)
            # Without the seed: the smaller part lies in the larger one, and is the same in every run.
            order = rng(0, "vla proxy", "part", name).permutation(len(keys))
            kept = {keys[i] for i in order[: max(round(share * len(keys)), 1)]}
            found[name] = np.flatnonzero([key in kept for key in pool.key]).astype(np.int64)
        return found

    def run(self, run: ProxyRun) -> dict[str, float]:
        """Trains a fresh policy and returns its held-out loss per target."""
        items = self._items(run)
        shares = {name: Fraction(str(run.weights[name])) for name in self.sources if run.weights.get(name)}
        plan, size = Schedule(shares), self.config.trainer.batch_size

        def batch_at(step: int) -> list[Group]:
            numbers, ranks = plan.at(np.arange(step * size, (step + 1) * size, dtype=np.int64))
            picked: dict[str, list[int]] = {}
            for number, rank in zip(numbers, ranks, strict=True):
                name = plan.names[int(number)]
                own = items[name]
                picked.setdefault(name, []).append(int(own[_place(run.seed, name, int(rank), len(own))]))
            return self._batch(picked)

        module, optimiser, schedule = self._fresh(run.budget, run.seed)
        for step in range(run.budget):
            generator = torch_generator(run.seed, "noise", step)
            torch.manual_seed(seed_of(run.seed, "dropout", step))
            loss, _ = batch_loss(module.model, batch_at(step), generator)
            self._step(module, optimiser, schedule, loss)
        return self._measure(module.model)

    def _batch(self, picked: Mapping[str, Sequence[int]]) -> list[Group]:
        """Returns samples by source as one group per embodiment, by name."""
        parts: dict[str, list[Group]] = {}
        for name in sorted(picked):
            part = _picked(self._train[name], picked[name])
            parts.setdefault(part.embodiment, []).append(part)
        return [_joined(parts[body], self.device) for body in sorted(parts)]

    def _fresh(self, budget: int, seed: int) -> tuple[VLAModule, Any, Any]:
        trainer = self.config.trainer
        warmup = min(trainer.warmup_steps, max(budget // 10, 1))
        trainer = replace(trainer, max_steps=budget, seed=seed, warmup_steps=warmup)
        policy = build_policy(self.config.policy, self._bodies, seed=seed).to(self.device).train()
        module = VLAModule(policy, trainer)
        both = module.configure_optimizers()
        return module, both["optimizer"], both["lr_scheduler"]["scheduler"]

    def _step(self, module: VLAModule, optimiser: Any, schedule: Any, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), module.trainer_config.grad_clip)
        optimiser.step()
        schedule.step()

    @torch.no_grad()
    def _measure(self, policy: Policy) -> dict[str, float]:
        """Returns the mean error per held-out sample, by target; the noise is the same for every policy."""
        policy.eval()
        losses = {}
        for name, pool in self._val.items():
            total = []
            for first in range(0, len(pool.key), _CHUNK):
                part = _picked(pool, range(first, min(first + _CHUNK, len(pool.key))))
                generator = torch_generator(0, "vla proxy", "val", name, first)
                total.append(_errors(policy, part, generator))
            each = torch.cat(total)
            losses[name] = float(each[torch.isfinite(each)].mean()) if torch.isfinite(each).any() else float("nan")
        return losses

    def reference(self, run: ProxyRun) -> Policy:
        """Trains the reference policy of Re-Mix on the run's weights."""
        module, optimiser, schedule = self._fresh(run.budget, run.seed)
        weights = torch.tensor([run.weights[name] for name in self.sources], device=self.device)
        for step in range(run.budget):
            losses = self._per_source(module.model, self._even_batch(run.seed, step), run.seed, step)
            self._step(module, optimiser, schedule, _weighted(losses, weights, self.sources))
        return module.model.eval()

    def train_reweighted(self, reference: Policy, rule: Rule, *, budget: int, seed: int) -> None:
        """Trains a fresh policy under weights that ``rule`` sets from the excess over the reference."""
        module, optimiser, schedule = self._fresh(budget, seed_of(seed, "reweighted") % 2**31)
        for step in range(budget):
            groups = self._even_batch(seed, step + budget)
            losses = self._per_source(module.model, groups, seed, step)
            with torch.no_grad():
                base = self._per_source(reference, groups, seed, step)
            excess = {
                name: (losses[name].detach() - base[name]).cpu().numpy().astype(np.float64) for name in self.sources
            }
            weights = rule(excess)
            alpha = torch.tensor([weights[name] for name in self.sources], device=self.device)
            self._step(module, optimiser, schedule, _weighted(losses, alpha, self.sources))

    def _even_batch(self, seed: int, step: int) -> dict[str, Group]:
        """Returns equally many samples of each source."""
        each = max(self.config.trainer.batch_size // len(self.sources), 1)
        found = {}
        for name, pool in self._train.items():
            ranks = range(step * each, (step + 1) * each)
            found[name] = _picked(pool, [_place(seed, name, rank, len(pool.key)) for rank in ranks])
        return found

    def _per_source(self, policy: Policy, groups: Mapping[str, Group], seed: int, step: int) -> dict[str, Tensor]:
        """Returns the error of each sample by source; equal seeds and steps give equal noise."""
        return {
            name: _errors(policy, group, torch_generator(seed, "dro", name, step)) for name, group in groups.items()
        }


@lru_cache(maxsize=64)
def _order(seed: int, source: str, epoch: int, n: int) -> NDArray[np.int64]:
    return rng(seed, "vla proxy", "order", source, epoch).permutation(n)


def _place(seed: int, source: str, rank: int, n: int) -> int:
    """Returns which of a source's n samples is its ``rank``-th in a run: each comes once before any comes again."""
    epoch, place = divmod(rank, n)
    return int(_order(seed, source, epoch, n)[place])


def _errors(policy: Policy, group: Group, generator: torch.Generator) -> Tensor:
    """Returns the mean squared velocity error of each sample, float [B], in normalised action units."""
    (encoded,) = encode_groups(policy, [group])
    error, count = group_error(policy, group, encoded, generator)
    return error / count.clamp(min=1.0)


def _weighted(losses: Mapping[str, Tensor], weights: Tensor, sources: Sequence[str]) -> Tensor:
    means = torch.stack([losses[name].mean() for name in sources])
    return (weights.to(means) * means).sum()


def _picked(group: Group, numbers: Sequence[int]) -> Group:
    """Returns some samples of a group, in the order given."""
    index = torch.tensor(list(numbers), dtype=torch.int64)
    values: dict[str, Any] = {}
    for field in fields(group):
        value = getattr(group, field.name)
        if isinstance(value, Tensor):
            values[field.name] = value[index.to(value.device)]
        elif isinstance(value, tuple):
            values[field.name] = tuple(value[i] for i in numbers) if value else ()
    return replace(group, **values)


def _joined(groups: Sequence[Group], device: torch.device) -> Group:
    """Returns the samples of groups of one embodiment as one group on a device."""
    values: dict[str, Any] = {}
    for field in fields(groups[0]):
        parts = [getattr(group, field.name) for group in groups]
        if any(part is None for part in parts):  # What is not known of all is not told.
            values[field.name] = None
        elif isinstance(parts[0], Tensor):
            values[field.name] = torch.cat(parts).to(device)
        elif isinstance(parts[0], tuple):
            values[field.name] = tuple(item for part in parts for item in part)
    return replace(groups[0], **values)


def load(mixture: str, config: str = "") -> VLAProxy:
    """Returns the proxy of a mixture: the entry point ``vla`` of ``pyramid.proxies``.

    Args:
        mixture: mixture file.
        config: preset or YAML file of a `VLAConfig`; empty takes ``vla/tiny``.
    """
    return VLAProxy(mixture, resolve(VLAConfig, config or "vla/tiny"))
