"""Memory that workers fill over and over: what is held stays as it is, what is let go of is used again."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch

from pyramid.config import dump_yaml
from pyramid.mixture.batch import Batch, MixtureStream, open_mixture
from pyramid.mixture.group import largest
from pyramid.mixture.loader import MixtureLoader
from pyramid.mixture.stretches import Stretches

BATCH, STEPS = 8, 16


@pytest.fixture
def stream(spec: dict, tmp_path: Path) -> MixtureStream:
    (tmp_path / "mix.yaml").write_text(dump_yaml(spec))
    return open_mixture(str(tmp_path / "mix.yaml"), batch_size=BATCH, image_size=16)


def numbers(batch: Batch) -> list[bytes]:
    return [t.numpy().tobytes() for g in batch for t in (g.images, g.action, g.mask, g.state, g.position, g.weight)]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_are_all_held_stay_what_they_were(stream: MixtureStream, workers: int) -> None:
    # More than there are stretches for: a worker that wrote into one that is held would change a batch.
    held = list(islice(MixtureLoader(stream, batch_size=BATCH, workers=workers), STEPS))
    assert [numbers(batch) for batch in held] == [numbers(stream.batch(step)) for step in range(STEPS)]


def test_a_view_of_a_batch_holds_its_memory(stream: MixtureStream) -> None:
    first = []
    for batch in islice(MixtureLoader(stream, batch_size=BATCH, workers=1), STEPS):
        first.append(batch[0].images[:1].numpy())
    assert [view.tobytes() for view in first] == [
        stream.batch(step)[0].images[:1].numpy().tobytes() for step in range(STEPS)
    ]


def test_memory_that_nobody_holds_is_used_again(stream: MixtureStream) -> None:
    places = set()
    for batch in islice(MixtureLoader(stream, batch_size=BATCH, workers=1, prefetch=2), 40):
        places.add(batch[0].images.untyped_storage().data_ptr())
    assert len(places) <= 5


def test_no_batch_is_larger_than_is_reckoned_with(stream: MixtureStream) -> None:
    most = largest(stream.embodiments.values(), BATCH, 16)
    taken = [batch[0].images.untyped_storage().nbytes() for batch in map(stream.batch, range(STEPS))]
    assert max(taken) <= most < 2 * max(taken)


def test_stretches_are_lent_until_the_last_view_is_gone() -> None:
    stretches = Stretches(2, 2, 5000)
    assert stretches.take(0, 10_000) is None
    mine = [stretches.take(1, n) for n in (5000, 10, 10)]
    assert mine[0] is not None
    assert mine[1] is not None
    assert mine[2] is None
    assert [stretches.place_of(m) for m in mine[:2] if m is not None] == [2, 3]
    assert stretches.place_of(torch.zeros(9)) is None
    mine[0][7] = 77
    view = stretches.receive(2)[5:10].view(1, 5)[0]
    gc.collect()
    assert view[2] == 77
    assert stretches.take(1, 10) is None

    def let_go() -> None:
        nonlocal view
        del view
        gc.collect()
        os._exit(0)

    # The same object in a forked process is not the last of it.
    child = multiprocessing.get_context("fork").Process(target=let_go)
    child.start()
    child.join()
    assert stretches.take(1, 10) is None
    del view
    again = stretches.take(1, 10)
    assert again is not None
    assert stretches.place_of(again) == 2
    assert again[7] == 77


def test_a_process_that_is_not_forked_takes_memory_of_its_own(stream: MixtureStream) -> None:
    loader = MixtureLoader(stream, batch_size=BATCH, workers=1)
    batches = iter(loader)
    next(batches)
    assert loader._share.stretches is not None
    assert pickle.loads(pickle.dumps(loader._share)).stretches is None  # noqa: S301
