"""One global order for any number of workers and ranks and from any point on, in PyTorch and in Lightning."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import drawing
import lightning
import pytest
import torch

from pyramid.config import dump_yaml
from pyramid.errors import ConfigError
from pyramid.mixture.batch import Batch, Group, MixtureStream, open_mixture
from pyramid.mixture.data_module import MixtureData
from pyramid.mixture.loader import MixtureLoader

BATCH, STEPS = 8, 6


@pytest.fixture
def stream(spec: dict, tmp_path: Path) -> MixtureStream:
    (tmp_path / "mix.yaml").write_text(dump_yaml({**spec, "augment": {"brightness": 0.5, "shift": 0.2}}))
    return open_mixture(str(tmp_path / "mix.yaml"), batch_size=BATCH, image_size=16)


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a batch holds, sample by sample, in the order in which it stands there."""
    return [row for group in batch for row in _rows(group)]


def _rows(g: Group) -> Iterable[tuple[Any, ...]]:
    words = (g.source, g.tier, g.key, g.text, g.label)
    tensors = (g.images, g.action, g.mask, g.state, g.position)
    for b in range(len(g.key)):
        yield (g.embodiment, *(w[b] for w in words), *(t[b].numpy().tobytes() for t in tensors))


def of_ranks(stream: MixtureStream, *, workers: int, ranks: int, start: int, steps: int) -> list[list[Batch]]:
    """The batches of each rank from a resume point on."""
    found = []
    for rank in range(ranks):
        loader = MixtureLoader(stream, batch_size=BATCH, rank=rank, ranks=ranks, workers=workers)
        loader.load_state_dict({"position": start})
        found.append(list(islice(loader, steps)))
        assert loader.state_dict() == {"position": start + steps * BATCH}
    return found


def by_place(ranks: list[list[Batch]]) -> list[tuple[Any, ...]]:
    """The global order as the ranks were dealt it: sample i of a step went to rank i mod R, in its turn."""
    order = []
    for step in zip(*ranks, strict=True):
        turns = [iter(in_turn(batch)) for batch in step]
        order += [next(turns[i % len(turns)]) for i in range(BATCH)]
    return order


def in_turn(batch: Batch) -> list[tuple[Any, ...]]:
    """A rank's samples in turn: groups each stand in the global order, so the groups are only merged."""
    queues = [list(_rows(group)) for group in batch]
    merged = []
    while any(queues):
        best = min((q for q in queues if q), key=lambda q: int.from_bytes(q[0][-1], "little"))
        merged.append(best.pop(0))
    return merged


@pytest.fixture(scope="module")
def whole(spec: dict, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    path = tmp_path_factory.mktemp("whole") / "mix.yaml"
    path.write_text(dump_yaml({**spec, "augment": {"brightness": 0.5, "shift": 0.2}}))
    alone = open_mixture(str(path), batch_size=BATCH, image_size=16)
    return [row for step in range(2 * STEPS) for row in in_turn(alone.batch(step))]


def ways() -> Iterable[Any]:
    for workers in (0, 1, 3, 8):
        for ranks in (1, 2, 4):
            quick = workers * ranks < 6 and (workers, ranks) != (1, 4)
            yield pytest.param(workers, ranks, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("workers", "ranks"), ways())
def test_one_order_for_all_workers_ranks_and_resume_points(
    stream: MixtureStream, whole: list[tuple[Any, ...]], workers: int, ranks: int
) -> None:
    assert [int.from_bytes(row[-1], "little") for row in whole] == list(range(2 * STEPS * BATCH))
    # Each point for the way without processes, every second or third one for those that fork many.
    first, stride = (0, 1) if workers == 0 else ((workers + ranks) % 3, 3 if workers * ranks < 6 else 2)
    for start in range(first * BATCH, STEPS * BATCH, stride * BATCH):
        found = by_place(of_ranks(stream, workers=workers, ranks=ranks, start=start, steps=3))
        assert found == whole[start : start + 3 * BATCH]


def test_a_state_goes_on_with_other_ranks_and_workers(stream: MixtureStream, whole: list[tuple[Any, ...]]) -> None:
    first = MixtureLoader(stream, batch_size=BATCH, rank=1, ranks=2)
    list(islice(first, 2))
    found = []
    for rank in range(4):
        loader = MixtureLoader(stream, batch_size=BATCH, rank=rank, ranks=4, workers=rank % 2)
        loader.load_state_dict(first.state_dict())
        found.append(list(islice(loader, 2)))
    assert by_place(found) == whole[2 * BATCH : 4 * BATCH]


def test_the_loader_ends_where_it_is_told_to(stream: MixtureStream) -> None:
    assert len(list(MixtureLoader(stream, batch_size=BATCH, steps=5, workers=3))) == 5


@pytest.mark.parametrize(("batch_size", "rank", "ranks"), [(8, 2, 2), (8, 0, 3), (0, 0, 1), (8, -1, 2)])
def test_sizes_that_do_not_go_together_are_refused(
    stream: MixtureStream, batch_size: int, rank: int, ranks: int
) -> None:
    with pytest.raises(ConfigError, match="batch size"):
        MixtureLoader(stream, batch_size=batch_size, rank=rank, ranks=ranks)


def test_a_source_smaller_than_its_part_of_a_batch_is_refused(stream: MixtureStream) -> None:
    with pytest.raises(ConfigError, match=r"source 'human' has 8 samples, a batch of 30 takes up to 9.0"):
        MixtureLoader(stream, batch_size=30)


def test_steps_of_another_size_than_the_schedule_s_are_refused(spec: dict, tmp_path: Path) -> None:
    changed = {**spec, "schedule": [{"step": 3, "tiers": {"top": 0.1}}], "schedule_batch": 4}
    (tmp_path / "mix.yaml").write_text(dump_yaml(changed))
    scheduled = open_mixture(str(tmp_path / "mix.yaml"), batch_size=1, image_size=16)
    with pytest.raises(ConfigError, match="steps of 4 samples, the training's have 8"):
        MixtureLoader(scheduled, batch_size=8)
    MixtureLoader(scheduled, batch_size=4)


class Tiny(lightning.LightningModule):
    """Guesses brightness from actions; remembers every loss."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Linear(1, 1)
        self.losses: list[float] = []
        self.positions: list[int] = []
        self.stop_at = stop_at

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("killed")
        x = torch.cat([g.action.mean((1, 2))[:, None] / 1000 for g in batch])
        y = torch.cat([g.images.float().mean((1, 2, 3, 4))[:, None] / 255 for g in batch])
        loss = (self.net(x) - y).square().mean()
        self.losses.append(float(loss.detach()))
        self.positions += sorted(p for g in batch for p in g.position.tolist())
        return loss

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def fit(stream: MixtureStream, folder: Path, *, steps: int, workers: int, stop_at: int | None = None) -> Tiny:
    module = Tiny(stop_at)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=2, save_top_k=0)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    data = MixtureData(stream, batch_size=BATCH, workers=workers)
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    except RuntimeError as error:
        assert "killed" in str(error)  # noqa: PT017
    return module


def test_a_resumed_lightning_run_has_a_bit_equal_loss_curve(stream: MixtureStream, tmp_path: Path) -> None:
    alone = fit(stream, tmp_path / "whole", steps=9, workers=0)
    assert alone.positions == list(range(9 * BATCH))
    losses: list[float] = []
    for workers, stop_at in ((0, 3), (2, 7), (1, None)):
        part = fit(stream, tmp_path / "parts", steps=9, workers=workers, stop_at=stop_at)
        # It goes on from the last even step.
        assert part.positions[0] == (len(losses) - 1 if losses else 0) * BATCH
        losses = losses[: part.positions[0] // BATCH] + part.losses
    assert losses == alone.losses
    saved = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert saved["MixtureData"] == {"position": 8 * BATCH}


def test_pictures_are_varied_alike_for_all_views_and_by_position_alone(spec: dict, tmp_path: Path) -> None:
    from pyramid.mixture.augment import AugmentSpec, augment

    varied = AugmentSpec(crop=0.5, shift=0.1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    view = torch.from_numpy(drawing.picture(12345, 32, 32).copy())
    views = augment(torch.stack([view] * 3), varied, 0, 7)
    assert views.shape == (3, 32, 32, 3)
    assert views.dtype == torch.uint8
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])
    before = torch.random.get_rng_state()
    assert torch.equal(augment(view[None], varied, 0, 7)[0], views[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [augment(view[None], varied, seed, place)[0] for seed, place in ((0, 8), (1, 7))]
    assert not any(torch.equal(views[0], other) for other in [view, *others])
    for name in ("crop", "shift", "brightness", "contrast", "hue"):
        one = AugmentSpec(**{name: 0.3})
        colourful = view.clone()
        colourful[..., 0] //= 2
        assert not torch.equal(augment(colourful[None], one, 0, 3)[0], colourful), name
    assert torch.equal(augment(view[None], AugmentSpec(), 0, 7)[0], view)


def test_shifts_move_whole_pixels_and_repeat_the_border() -> None:
    from pyramid.mixture.augment import AugmentSpec, augment

    side, most = 20, 3
    rows = torch.arange(side, dtype=torch.uint8)
    view = torch.stack([rows[:, None].expand(side, side), rows.expand(side, side), rows[:, None] + rows], dim=-1)
    found = set()
    for position in range(400):
        moved = augment(view[None], AugmentSpec(shift=most / side), 0, position)[0]
        down, right = (int(moved[side // 2, side // 2, axis]) - side // 2 for axis in (0, 1))
        wanted = [(torch.arange(side) + by).clamp(0, side - 1) for by in (down, right)]
        assert torch.equal(moved, view[wanted[0]][:, wanted[1]])
        found.add((down, right))
    assert found == {(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)}


def test_held_out_pictures_are_not_varied(spec: dict, tmp_path: Path) -> None:
    arm = copy.deepcopy({**spec, "tiers": {"top": spec["tiers"]["top"]}})
    (tmp_path / "plain.yaml").write_text(dump_yaml(arm))
    (tmp_path / "varied.yaml").write_text(dump_yaml({**arm, "augment": {"brightness": 0.9}}))
    for split, equal in (("val", True), ("train", False)):
        one, other = (
            open_mixture(str(tmp_path / name), batch_size=4, image_size=16, split=split).batch(0)[0].images  # type: ignore[arg-type]
            for name in ("plain.yaml", "varied.yaml")
        )
        assert torch.equal(one, other) == equal
