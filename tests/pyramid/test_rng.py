"""Keyed randomness: the same everywhere, different for every key."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid.rng import rng, seed_of, torch_generator

KEY = st.lists(st.one_of(st.integers(-(2**40), 2**40), st.text(max_size=8)), max_size=4).map(tuple)


@given(st.integers(0, 2**40), KEY)
def test_equal_keys_give_equal_numbers(seed: int, key: tuple[str | int, ...]) -> None:
    assert 0 <= seed_of(seed, *key) < 2**63
    assert (rng(seed, *key).integers(0, 2**62, 4) == rng(seed, *key).integers(0, 2**62, 4)).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), (0, "b")),
        ((0, 1), (0, "1")),
        ((0, "a", "b"), (0, "ab")),
        ((0, "a", "b"), (0, "b", "a")),
        ((0,), (0, "")),
    ],
)
def test_different_keys_give_different_numbers(one: tuple, other: tuple) -> None:
    assert seed_of(*one) != seed_of(*other)
    assert not np.array_equal(rng(*one).integers(0, 2**62, 4), rng(*other).integers(0, 2**62, 4))


def test_no_two_of_many_keys_collide() -> None:
    assert len({seed_of(0, "mixture", f"source{s}", epoch) for s in range(50) for epoch in range(200)}) == 10_000


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    script = "from pyramid.rng import rng; print(rng(3, 'shuffle', 'arm', 7).permutation(20).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12345"}
    )
    assert done.stdout.strip() == str(rng(3, "shuffle", "arm", 7).permutation(20).tolist())


def test_no_global_state_is_touched_or_read() -> None:
    np.random.seed(0)
    before = rng(5, "x").random(3)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert (rng(5, "x").random(3) == before).all()
    assert (np.random.get_state()[1] == state).all()


def test_torch_draws_are_keyed_too() -> None:
    torch = pytest.importorskip("torch")
    state = torch.get_rng_state()
    first, again, other = (torch.rand(4, generator=torch_generator(0, "noise", step)) for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
