"""What an exported policy's answers are worth on real observations: against PyTorch, and against the true actions.

Observations come from a mixture's own order: its ``val`` split to measure on, its ``train`` split to calibrate with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyramid.errors import DataError
from pyramid.types import Split
from vla.deploy.graphs import Graph
from vla.deploy.parity import SeededObservation
from vla.deploy.runtime import PolicyRuntime
from vla.deploy.spec import SYSTEM_1_CONTEXT, SYSTEM_2
from vla.observation import initial_noise
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["HeldOutError", "Sample", "calibration_feeds", "measure_held_out", "read_samples"]

_BATCH = 8


@dataclass(frozen=True)
class Sample:
    """One observation of a mixture with the actions that followed it."""

    observation: dict[str, Any]
    """As `vla.observation.read_observation` takes it."""
    action: NDArray[np.float32]
    """float32 [N, D], physical units."""
    mask: NDArray[np.bool_]
    """bool [N, D], False where there is no true action."""


@dataclass(frozen=True)
class HeldOutError:
    """Errors on held-out samples, in the physical units of the actions."""

    samples: int
    """Observations."""
    mean_abs: float
    """Mean absolute difference between the exported policy's actions and PyTorch's (fp32)."""
    max_abs: float
    """Largest such difference."""
    mae: float
    """Mean absolute error of the exported policy's actions against the true ones."""
    mae_pytorch: float
    """The same for PyTorch's (fp32)."""


def read_samples(mixture: str, policy: Policy, embodiment: str, *, split: Split, count: int) -> list[Sample]:
    """Reads samples of one embodiment from a mixture.

    Raises:
        ConfigError: the file is no mixture.
        DataError: there is no such sample.
    """
    from pyramid.mixture.batch import open_mixture

    size = policy.config.backbone.image_size_px
    stream = open_mixture(mixture, batch_size=_BATCH, image_size=size, split=split)
    found: list[Sample] = []
    for step in range(4 * -(-count // _BATCH)):
        found += [s for group in stream.batch(step) if group.embodiment == embodiment for s in _samples(group)]
        if len(found) >= count:
            break
    if not found:
        raise DataError(f"'{mixture}' gave no sample of '{embodiment}' in split '{split}'")
    return found[:count]


def _samples(group: Group) -> Iterator[Sample]:
    for row in range(len(group.text)):
        observation: dict[str, Any] = {"images": group.images[row].numpy(), "text": group.text[row]}
        if group.state.shape[-1]:
            if not group.state_known[row]:
                continue
            observation["state"] = group.state[row].numpy()
        yield Sample(observation, group.action[row].numpy(), group.mask[row].numpy())


def measure_held_out(policy: Policy, runtime: PolicyRuntime, samples: Sequence[Sample]) -> HeldOutError:
    """Asks both for actions from the same noise and compares."""
    name = runtime.embodiment.name
    difference, ours, theirs = [], [], []
    for index, sample in enumerate(samples):
        got = runtime.act(sample.observation, seed=index).astype(np.float64)
        want = policy.act(sample.observation, embodiment=name, seed=index)
        difference.append(np.abs(got - want).ravel())
        ours.append(np.abs(got - sample.action)[sample.mask])
        theirs.append(np.abs(want - sample.action)[sample.mask])
    apart, mine, other = (np.concatenate(parts) for parts in (difference, ours, theirs))
    if not mine.size:
        raise DataError("there is no held-out action to compare with")
    return HeldOutError(len(samples), float(apart.mean()), float(apart.max()), float(mine.mean()), float(other.mean()))


@torch.no_grad()
def calibration_feeds(
    policy: Policy, embodiment: str, graphs: Sequence[Graph], samples: Iterable[Sample]
) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """Returns for every graph the inputs that samples lead to, as PyTorch computes them."""
    feeds: dict[str, list[dict[str, NDArray[Any]]]] = {graph.name: [] for graph in graphs}
    trim = any("text" in axes.values() for graph in graphs for axes in graph.axes)
    for index, sample in enumerate(samples):
        seen = _inputs(policy, embodiment, sample, index, trim=trim)
        context: tuple[torch.Tensor, ...] = ()
        key_values: tuple[torch.Tensor, ...] = ()
        for graph in graphs:
            inputs = seen.inputs(graph.name, context, key_values)
            feeds[graph.name].append({n: t.numpy() for n, t in zip(graph.inputs, inputs, strict=True)})
            if graph.name == SYSTEM_2:
                context = graph.module(*inputs)
            elif graph.name == SYSTEM_1_CONTEXT:
                key_values = graph.module(*inputs)
    return feeds


def _inputs(policy: Policy, embodiment: str, sample: Sample, index: int, *, trim: bool) -> SeededObservation:
    body, steps = policy.processor.body(embodiment).embodiment, policy.config.head.sample_steps
    noise = torch.from_numpy(initial_noise(index, body.network.horizon, body.network.action_dim))[None]
    system1: tuple[torch.Tensor, ...] = (noise,)
    if body.state_dim:
        state = torch.from_numpy(np.asarray(sample.observation["state"], np.float32))[None]
        system1 = (noise, policy.processor.state(state, embodiment))
    images = torch.from_numpy(np.ascontiguousarray(sample.observation["images"]))[None]
    text = policy.processor.text([str(sample.observation["text"])], trim=trim)
    bucket = torch.tensor([1000 * (index % steps) // steps])
    return SeededObservation((images, *text), system1, bucket)
