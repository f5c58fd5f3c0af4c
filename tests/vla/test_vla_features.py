"""Features that are kept: the same training with less work, each frame worked out once, nothing stale ever read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import drawing
import feature_folder
import pytest
import torch
from feature_folder import (
    DRAWN,
    FAMILIES,
    Calls,
    alike,
    all_kept,
    batches,
    config,
    filled,
    kept_files,
    mixture_of,
    opened,
    same,
    trained,
    write_mixture,
)

from pyramid import files
from pyramid.errors import ConfigError
from pyramid.mixture.batch import open_mixture
from vla.config import BackboneConfig
from vla.train import train_vla

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("llava", "keypoints") else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES],
)
def test_what_is_kept_decides_no_bit_of_a_training(kind: str, tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    plain = trained(mixture, tmp_path / "plain", config(kind, **{"policy.backbone.cache_features": False}))
    assert not kept_files(tmp_path)
    kept = trained(mixture, tmp_path / "kept", config(kind))
    assert len(kept_files(tmp_path / "arm")) == 2
    assert alike(plain, kept)
    # What is there decides nothing: half of it, all of it.
    kept_files(tmp_path / "arm")[0].unlink()
    stream, _ = opened(mixture, config(kind))
    lengths = torch.cat([group.context_length for group in batches(stream)])
    assert 0 < int((lengths > 0).sum()) < len(lengths)
    assert same(kept, trained(mixture, tmp_path / "again", config(kind), workers=2))


def test_a_frame_passes_the_backbone_once(tmp_path: Path, calls: Calls) -> None:
    mixture = write_mixture(tmp_path)
    trained(mixture, tmp_path / "first", config())
    # 8 steps of 6 samples: more than an epoch. The pictures of clips that are held out are nobody's.
    assert calls.taken() == DRAWN
    trained(mixture, tmp_path / "second", config(**{"trainer.seed": 0, "trainer.lr": 1e-4}))
    assert calls.taken() == 0
    train_vla(mixture, out=str(tmp_path / "second"), config=config(**{"trainer.lr": 1e-4}))
    assert calls.taken() == 0


def test_no_picture_is_decoded_where_features_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = write_mixture(tmp_path)
    plain = open_mixture(mixture, batch_size=6, image_size=32)
    stream, _ = filled(mixture, config())

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was decoded")

    wanted = batches(plain)
    monkeypatch.setattr("pyramid.shards.reader.decode_mp4", decode)
    for group, want in zip(batches(stream), wanted, strict=True):
        assert not group.images.any()
        for name in ("action", "state", "mask", "position", "state_known", "weight"):
            assert torch.equal(getattr(group, name), getattr(want, name)), name
        assert (group.key, group.text, group.replaced) == (want.key, want.text, want.replaced)


def test_a_target_that_looks_at_pictures_gets_them(tmp_path: Path, calls: Calls) -> None:
    learned = {"weight": 0.2, "target": "qformer", "qformer_width": 16, "qformer_heads": 2}
    options = {"policy.head.future_tokens": 4, "objectives.flare": learned}
    mixture = write_mixture(tmp_path, future_s=0.2)
    plain = trained(mixture, tmp_path / "plain", config(**options, **{"policy.backbone.cache_features": False}))
    calls.taken()
    assert alike(plain, trained(mixture, tmp_path / "kept", config(**options)))
    assert calls.taken() == DRAWN
    stream, _ = opened(mixture, config(**options))
    assert all(group.images.any() and (group.context_length > 0).all() for group in batches(stream))


def test_videos_come_with_features_too(tmp_path: Path) -> None:
    shards = drawing.write_shards(tmp_path / "arm", [9, 9, 9])
    human = drawing.write_shards(tmp_path / "human", [9, 9], actions=False, first_clip=9, embodiment="human")
    sources = {"robot": {"shards": shards, "use": "action"}, "seen": {"shards": human, "use": "video"}}
    mixture = mixture_of(tmp_path, sources, future_s=0.3)
    flare = {"policy.head.future_tokens": 4, "objectives.flare": {"weight": 0.2, "grid": 2}}
    plain = trained(mixture, tmp_path / "plain", config(**flare, **{"policy.backbone.cache_features": False}))
    assert alike(plain, trained(mixture, tmp_path / "kept", config(**flare)))
    assert len(kept_files(tmp_path / "human")) == 1


def test_another_mixture_over_the_same_shards_adds_its_clips(tmp_path: Path, calls: Calls) -> None:
    mixture = write_mixture(tmp_path)
    shards = str(tmp_path / "arm")
    some = mixture_of(tmp_path, {"robot": {"shards": shards, "use": "action", "filter": {"text": "show [01]$"}}})
    filled(some, config())
    assert calls.taken() == 9 + 8
    filled(mixture_of(tmp_path, {"robot": {"shards": shards, "use": "action"}}), config())
    assert calls.taken() == 9 + 7
    other = mixture_of(tmp_path, {"robot": {"shards": shards, "use": "action", "filter": {"text": "show 3$"}}})
    filled(other, config())
    stream, _ = opened(mixture, config())
    assert calls.taken() == 0
    assert all_kept(stream)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_rounded_features_are_half_as_large_and_nearly_the_same(dtype: str, tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    chosen = config(**{"policy.backbone.cache_dtype": dtype})
    (full, want), (half, found) = told(mixture, config()), told(mixture, chosen)
    assert half < 0.6 * full
    assert found.dtype == getattr(torch, dtype)
    assert torch.allclose(found.float(), want, rtol=1e-2, atol=2e-3)
    assert not torch.equal(found.float(), want)
    first = trained(mixture, tmp_path / "first", chosen)
    # With nothing kept, the head still sees what is rounded.
    shutil.rmtree(tmp_path / "arm" / "features")
    (tmp_path / "arm" / "features").write_text("in the way")
    (tmp_path / "cache" / "latent-pyramid" / "features").write_text("in the way")
    assert same(first, trained(mixture, tmp_path / "again", chosen))


def told(mixture: str, chosen: Any) -> tuple[int, torch.Tensor]:
    """Fills features in; returns their size on the disk, and those of the first batches."""
    stream, features = filled(mixture, chosen)
    size = sum(path.stat().st_size for path in Path(features.where).glob("*.safetensors"))
    return size, torch.cat([group.context.flatten() for group in batches(stream)])


def test_what_float16_has_no_room_for_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla.features.maker import rounded

    rows = torch.tensor([[1.0, 7e4]])
    with pytest.raises(ConfigError, match=r"reach 7e\+04, which float16 does not hold; .*cache_dtype: bfloat16"):
        rounded(rows, "float16")
    assert rounded(rows, "bfloat16").dtype == torch.bfloat16
    assert rounded(rows, "full") is rows


def test_a_dry_run_says_sizes_and_writes_nothing(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    before = drawing.tree(tmp_path / "arm")
    plan = train_vla(mixture, config=config(), dry_run=True)
    # 9 + 8 + 9 + 7 frames of 16 view tokens and 7 of "show N" with its beginning, 32 numbers of 4 bytes each.
    size = f"{DRAWN * 23 * 32 * 4 / 1024:.1f} KiB"
    assert any(f"{DRAWN} frames to be worked out once (0 are kept), {size} in " in note for note in plan.notes)
    assert drawing.tree(tmp_path / "arm") == before
    filled(mixture, config())
    assert f"all {DRAWN} frames are kept" in train_vla(mixture, config=config(), dry_run=True).notes[-1]


def test_on_a_gpu_frames_pass_together_with_nearly_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    mixture = write_mixture(tmp_path)
    want = torch.cat([group.context.flatten() for group in batches(filled(mixture, config())[0])])
    calls.taken()
    for module in ("maker", "encode"):
        monkeypatch.setattr(f"vla.features.{module}.at_once", lambda device: 16)
    filled_anew = shutil.move(tmp_path / "arm" / "features", tmp_path / "before")
    assert Path(filled_anew).exists()
    stream, _ = filled(mixture, config())
    assert calls.taken() == DRAWN
    found = torch.cat([group.context.flatten() for group in batches(stream)])
    assert torch.allclose(found, want, atol=1e-5)
    first = trained(mixture, tmp_path / "first", config(**{"trainer.max_steps": 2}))
    kept_files(tmp_path / "arm")[0].unlink()
    stream, _ = opened(mixture, config())
    (group,) = stream.batch(0)
    assert 0 < int((group.context_length == 0).sum()) < len(group.key)
    assert first


def test_what_would_be_kept_in_vain_is_refused_by_name(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path, augment={"brightness": 0.2})
    with pytest.raises(ConfigError, match=r"cache_features .*augment.*take augment out of the mixture"):
        train_vla(mixture, out=str(tmp_path / "out"), config=config())
    assert not (tmp_path / "out").exists()
    for changes in ({}, {"frozen": True, "tune_top_layers": 1}, {"frozen": True, "tune_vision": True}):
        with pytest.raises(ValueError, match="nothing trains"):
            BackboneConfig(cache_features=True, **changes)
    for name, option in (
        ("tune.lora.rank", 2),
        ("trainer", {**feature_folder.TRAINER, "devices": 2, "strategy": "fsdp"}),
    ):
        with pytest.raises(ConfigError, match=r"cache_features needs a backbone that stands still"):
            config(**{name: option})
    with pytest.raises(ConfigError, match=r"head\.compatibility: n1_5 .*cache_features: false"):
        config(**{"policy.head.compatibility": "n1_5"})


def test_a_policy_in_use_asks_for_nothing_that_is_kept(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    chosen = config(**{"tune.validation": {"every": 4, "batches": 1}})
    trained(mixture, tmp_path / "kept", chosen)
    stream = open_mixture(mixture, batch_size=6, image_size=32, split="val")
    assert all(group.context is None for group in batches(stream, 1))
    assert dataclasses.replace(batches(stream, 1)[0]).context_length is None


def test_shards_in_a_store_have_their_features_beside_them(tmp_path: Path, s3: str, calls: Calls) -> None:
    write_mixture(tmp_path)
    for path in (tmp_path / "arm").iterdir():
        files.write_bytes(f"{s3}/features/arm/{path.name}", path.read_bytes())
    mixture = mixture_of(tmp_path, {"robot": {"shards": f"{s3}/features/arm", "use": "action"}})
    _, features = filled(mixture, config())
    assert features.where.startswith(f"{s3}/features/arm/features/")
    assert calls.taken() > 0
    assert not kept_files(tmp_path)
    stream, features = opened(mixture, config())
    assert features.plan().frames == 0
    assert all_kept(stream)
    assert calls.taken() == 0
