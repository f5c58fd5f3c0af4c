"""Fixtures that the tests of the policy share."""

from __future__ import annotations

import pytest
from tiny_policy import TINY, make_bodies

from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics


@pytest.fixture
def bodies() -> dict[str, BodyStatistics]:
    return make_bodies()


@pytest.fixture
def policy(bodies: dict[str, BodyStatistics]) -> Policy:
    return build_policy(TINY, bodies, seed=3).eval()
