"""Downloaded GR00T checkpoints, folders of ``config.json`` and weights, read into whole policies.

The sizes of the backbone are not in the checkpoints of N1 and N1.5 (they are in the publisher's repository), so they
come from a preset or the caller; every weight has to fit them. Facts are those of the public configurations and code of
N1, N1.5 and N1.7. What a folder says of its embodiments is read by `vla.gr00t_processor` and `vla.gr00t_metadata`. Of
N1.6 only the head is read (`vla.gr00t.read_head`): the code of its backbone is not free.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from pyramid import files
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError, nearest
from pyramid.nn.published import slot_name
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment
from vla.backbone import build_backbone
from vla.backbones.eagle import eagle_weights
from vla.backbones.weights import read_weights
from vla.config import BackboneConfig, HeadConfig, PolicyConfig, VLAConfig
from vla.gr00t import head_weights, read_sizes
from vla.gr00t_body import Tag
from vla.gr00t_metadata import Layout, read_metadata
from vla.gr00t_processor import read_processor
from vla.policy import Policy
from vla.processor import BodyStatistics

__all__ = ["PublishedFolder", "read_folder", "read_policy"]

_LOG = logging.getLogger("pyramid.vla")
_CONFIG = "config.json"
_EAGLE = {"n1": "backbone.model.", "n1_5": "backbone.eagle_model."}
_PROJECTION = {"n1": "backbone.linear.", "n1_5": "backbone.eagle_linear."}
_UNUSED = re.compile(r"\blm_head\.|\bvision_model\.head\.|\blanguage_model\.norm\.weight$")
"""Output heads and the language model's final norm, which nothing after the tapped layer reads."""
_PRESETS = {"n1": "vla/gr00t-n1", "n1_5": "vla/gr00t-n1.5", "n1_7": "vla/gr00t-n1.7"}


@dataclass(frozen=True)
class PublishedFolder:
    """What is in a downloaded checkpoint."""

    version: str
    """``n1``, ``n1_5``, ``n1_6`` or ``n1_7``."""
    head_config: dict[str, Any]
    """Configuration of the action head."""
    head: dict[str, Tensor]
    """Weights of the action head, names without their prefix."""
    backbone: dict[str, Tensor]
    """Weights of the backbone, with their prefix."""
    tap_layer: int | None
    """Language layer that is tapped, if the configuration says."""


def read_folder(folder: str) -> PublishedFolder:
    """Reads a downloaded checkpoint.

    Raises:
        DataError: something is missing, damaged, or of no release; it is named.
    """
    path = files.join(folder, _CONFIG)
    if not files.exists(path):
        raise DataError(f"'{folder}' is no downloaded GR00T checkpoint: it has no {_CONFIG}")
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise DataError(f"'{path}' is no configuration")
    # N1 and N1.5 nest the head's configuration, later versions have everything at the top.
    head_config = config.get("action_head_cfg", config)
    weights = read_weights(folder)
    head = {n.removeprefix("action_head."): t for n, t in weights.items() if n.startswith("action_head.")}
    backbone = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    stranger = sorted(set(weights) - set(backbone) - {f"action_head.{name}" for name in head})
    if stranger:
        raise DataError(f"'{folder}': the weight '{stranger[0]}' belongs to neither backbone nor action head")
    if not head or not backbone:
        raise DataError(f"'{folder}' has no weights of the {'backbone' if head else 'action head'}")
    version = read_sizes(head_config, head)[0].compatibility
    tap = config.get("backbone_cfg", config).get("select_layer")
    known = tap if isinstance(tap, int) and tap > 0 else None
    return PublishedFolder(version, dict(head_config), head, backbone, known)


def read_policy(
    folder: str,
    *,
    backbone: BackboneConfig | None = None,
    slots: Mapping[str, int | str] | None = None,
    layouts: Mapping[str, Layout] | None = None,
) -> Policy:
    """Reads a downloaded checkpoint into a policy that does what its version does (`HeadConfig.compatibility`).

    An embodiment whose statistics are in the checkpoint speaks physical units: its state and its actions are the
    numbers of the checkpoint's groups, in their order. Others have the normalised ones, as wide as the checkpoint's
    largest.

    Args:
        folder: downloaded checkpoint.
        backbone: sizes of its backbone, with the tokenizer that belongs to it; None for the preset of its version.
        slots: the embodiments to keep, our names -> tag, in physical units, or index of the slot, normalised. None
            keeps every tag that can be read by its name, and as ``slot_0``, ``slot_1``, ... the slots that none has.
        layouts: of N1 and N1.5, tag -> its groups and how they are scaled, which their folders do not say.

    Raises:
        DataError: something is missing, damaged, contradicts itself, or is of no release; it is named.
        ConfigError: the backbone's sizes are not those of the weights, there is no such slot or tag, or a tag that is
            asked for cannot be read.
    """
    found = read_folder(folder)
    if found.version not in _PRESETS:
        raise DataError(f"'{folder}' is of version {found.version}, whose backbone is none of the families here")
    head_config, bodies, width = read_sizes(found.head_config, found.head)
    sizes = backbone or resolve(VLAConfig, _PRESETS[found.version]).policy.backbone
    if found.tap_layer is not None and found.tap_layer != sizes.tap_layer:
        sizes = replace(sizes, tap_layer=found.tap_layer)
    built, tokenizer = build_backbone(sizes)
    if built.width != width:
        raise ConfigError(f"'{folder}': the head takes context of width {width}, the backbone gives {built.width}")
    tags = _tags(folder, found.version, head_config, list(bodies.values()), layouts or {})
    chosen = _chosen(tags, len(bodies)) if slots is None else slots
    known = _bodies(list(bodies.values()), tags, chosen)
    policy = Policy(
        PolicyConfig(backbone=sizes, head=head_config),
        {name: body for name, (_, body) in known.items()},
        built,
        tokenizer,
    )
    weights = {f"backbone.model.{name}": tensor for name, tensor in _backbone(found).items()}
    every = {f"head.{n}": t for n, t in head_weights(policy.head, found.head, list(bodies)).items()}
    kept = _kept(every, {name: index for name, (index, _) in known.items()})
    _load(policy, weights | kept, folder)
    return policy.eval()


def _backbone(found: PublishedFolder) -> dict[str, Tensor]:
    """Returns the backbone's weights under the names of our parts."""
    if found.version == "n1_7":
        # Qwen3-VL with its output head; older exports of it lack the inner prefix.
        named = {re.sub(r"^backbone\.model\.(model\.)?", "", name): t for name, t in found.backbone.items()}
    else:
        prefix, projection = _EAGLE[found.version], _PROJECTION[found.version]
        inner = {
            name.replace(projection, "linear.", 1).removeprefix(prefix): tensor
            for name, tensor in found.backbone.items()
        }
        named = eagle_weights(inner)
    return {name: tensor for name, tensor in named.items() if not _UNUSED.search(name)}


def _tags(
    folder: str, version: str, head: HeadConfig, slots: Sequence[Embodiment], layouts: Mapping[str, Layout]
) -> dict[str, Tag]:
    if version == "n1_7":
        return read_processor(folder, slots[0], len(slots), head.state_history)
    return read_metadata(folder, version, slots[0], len(slots), layouts)


def _chosen(tags: Mapping[str, Tag], n_slots: int) -> dict[str, int | str]:
    """Returns what is kept where nobody chooses: tags that can be read, and the slots that none of them has."""
    read = {name: tag.index for name, tag in tags.items() if tag.body is not None}
    for tag in tags.values():
        if tag.body is None:
            _LOG.warning("%s; its slot keeps the checkpoint's normalised numbers", tag.why)
    rest = {slot_name(i): i for i in range(n_slots) if i not in read.values()}
    return {**{name: name for name in read}, **rest}


def _bodies(
    slots: Sequence[Embodiment], tags: Mapping[str, Tag], chosen: Mapping[str, int | str]
) -> dict[str, tuple[int, BodyStatistics]]:
    """Returns slot and normalisers of the embodiments to keep, by our names."""
    out = {}
    for name, which in chosen.items():
        if isinstance(which, str):
            out[name] = _tagged(name, which, tags)
            continue
        if not 0 <= which < len(slots):
            raise ConfigError(f"the checkpoint has no slot {which} for '{name}': its slots are 0 to {len(slots) - 1}")
        body = replace(slots[which], name=name)
        out[name] = which, BodyStatistics(body, _as_it_is(body.state_dim), _as_it_is(body.action_dim))
    return out


def _tagged(name: str, tag: str, tags: Mapping[str, Tag]) -> tuple[int, BodyStatistics]:
    if tag not in tags:
        known = f"(of: {', '.join(sorted(tags)) or 'none'}){nearest(tag, list(tags))}"
        raise ConfigError(f"the checkpoint has no statistics of the tag '{tag}' {known}")
    found = tags[tag]
    if found.body is None:
        raise ConfigError(f"{found.why}; name its slot by number to have normalised numbers")
    body = found.body.embodiment
    spec = None if body.declaration is None else replace(body.declaration, name=name)
    return found.index, replace(found.body, embodiment=replace(body, name=name, declaration=spec))


def _as_it_is(dims: int) -> Normalizer:
    return Normalizer("identity", np.zeros(dims, np.float32), np.ones(dims, np.float32))


def _kept(weights: Mapping[str, Tensor], slots: Mapping[str, int]) -> dict[str, Tensor]:
    """Leaves out slots that are not wanted, and gives the others our names; those of one slot have a copy each."""
    out = {name: tensor for name, tensor in weights.items() if ".slots.for_" not in name}
    for body, index in slots.items():
        theirs = f".slots.for_{slot_name(index)}."
        out |= {n.replace(theirs, f".slots.for_{body}."): t for n, t in weights.items() if theirs in n}
    return out


def _load(policy: Policy, weights: Mapping[str, Tensor], folder: str) -> None:
    own = policy.state_dict()
    problems = [f"'{name}' is missing" for name in sorted(set(own) - set(weights))]
    problems += [f"'{name}' is not known here" for name in sorted(set(weights) - set(own))]
    problems += [
        f"'{name}' is {list(weights[name].shape)}, the sizes say {list(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise DataError(f"'{folder}': {len(problems)} weights do not fit: {'; '.join(problems[:3])}")
    policy.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})
