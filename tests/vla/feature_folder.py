"""A small pyramid and frozen policies of each family that keep features; shared by the tests of `vla.features`.

Run as a program with a folder of `write_mixture` and a delay as arguments, it fills the features in.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import drawing
import torch
from tiny_policy import HEAD

from pyramid.config import dump_yaml, resolve, to_dict
from pyramid.mixture.batch import Group, MixtureStream, open_mixture
from pyramid.nn.checkpoint import load_model_files
from vla.backbones.interface import Backbone
from vla.config import VLAConfig
from vla.features.fill import FeatureFill
from vla.features.maker import FeatureMaker
from vla.train import build_module, open_features, train_vla

FRAMES = [9, 8, 9, 7, 6]
DRAWN = sum(FRAMES[:-1])
"""Frames of the clips that are drawn from: the last is held out."""
SIZES = {
    "tap_layer": 2, "max_text_tokens": 16, "image_size_px": 32, "patch_px": 8, "vision_width": 32, "vision_layers": 2,
    "text_width": 32, "attention_heads": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {},
    "smolvlm": {"kv_heads": 1},
    "qwen3_vl": {"kv_heads": 1, "deepstack": (0,)},
    "keypoints": {},
}
TRAINER = {"max_steps": 8, "batch_size": 6, "warmup_steps": 2, "checkpoint_every": 4, "log_every": 1, "threads": 1}


def config(kind: str = "llava", **options: Any) -> VLAConfig:
    """A frozen policy that keeps features."""
    plain = {
        "policy.backbone": {**SIZES, **FAMILIES[kind], "kind": kind, "frozen": True, "cache_features": True},
        "policy.head": {**to_dict(HEAD), "dropout": 0.1},
        "trainer": TRAINER,
    }
    return resolve(VLAConfig, {}, **{**plain, **options})


def write_mixture(folder: Path, *, n_val: int = 1, **changes: Any) -> str:
    """Writes a robot's shards and a mixture of them."""
    shards = drawing.write_shards(folder / "arm", FRAMES, n_val=n_val)
    return mixture_of(folder, {"robot": {"shards": shards, "use": "action"}}, **changes)


def mixture_of(folder: Path, sources: dict[str, Any], **changes: Any) -> str:
    """Writes a mixture."""
    spec = {"tiers": {"top": {"weight": 1, "sources": sources}}, "horizon": 3, **changes}
    (folder / "mix.yaml").write_text(dump_yaml(spec))
    return str(folder / "mix.yaml")


def opened(mixture: str, chosen: VLAConfig) -> tuple[MixtureStream, FeatureFill]:
    """Opens a mixture with the features of its frames, none of them filled in yet."""
    size = chosen.policy.backbone.image_size_px
    stream = open_mixture(mixture, batch_size=chosen.trainer.batch_size, image_size=size)
    features = open_features(stream, build_module(stream, chosen).model, chosen)
    assert features is not None
    return stream, features


def filled(mixture: str, chosen: VLAConfig) -> tuple[MixtureStream, FeatureFill]:
    """Opens a mixture and fills its features in."""
    stream, features = opened(mixture, chosen)
    features.fill(features.plan())
    return stream, features


def trained(mixture: str, out: Path, chosen: VLAConfig, **options: Any) -> dict[str, Any]:
    """Trains; returns the weights."""
    train_vla(mixture, out=str(out), config=chosen, **options)
    return load_model_files(str(out), "vla")[1]


def kept_files(folder: Path) -> list[Path]:
    """Returns the files of features below a folder, in order."""
    return sorted(folder.rglob("features/**/*.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal but for rounding, a hundredth of what a training moves: whole batches pass the backbone
    where nothing is to be kept. AdamW makes much of the last bits of gradients near 0, so single ones differ more."""
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    size = sum(float(value.double().square().sum()) for value in a.values())
    return a.keys() == b.keys() and apart <= 1e-6 * size


def batches(stream: Any, n: int = 4) -> list[Group]:
    """Returns the groups of the first batches."""
    return [group for step in range(n) for group in stream.batch(step)]


def all_kept(stream: Any) -> bool:
    """Whether all of their samples come with features."""
    return all(bool((group.context_length > 0).all()) for group in batches(stream))


def none_kept(stream: Any) -> bool:
    """Whether none does."""
    return all(not group.context_length.any() for group in batches(stream))


class Calls:
    """How many frames passed any backbone; a context manager that pytest's monkeypatch undoes."""

    def __init__(self, monkeypatch: Any) -> None:
        self.frames = 0
        forward = Backbone.forward

        def counted(backbone: Backbone, images: Any, *args: Any) -> Any:
            # A black picture is only to see how wide the features are.
            self.frames += int(images.flatten(1).any(1).sum())
            return forward(backbone, images, *args)

        monkeypatch.setattr(Backbone, "forward", counted)

    def taken(self) -> int:
        """Returns how many since it was last asked."""
        found, self.frames = self.frames, 0
        return found


def main(folder: Path, delay_s: float) -> None:
    encode = FeatureMaker.encode

    def slow(maker: FeatureMaker, *args: Any) -> Any:
        time.sleep(delay_s)
        return encode(maker, *args)

    FeatureMaker.encode = slow  # type: ignore[method-assign]
    filled(str(folder / "mix.yaml"), config())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
