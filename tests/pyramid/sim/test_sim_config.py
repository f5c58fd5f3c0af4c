"""What a simulated data set is made of."""

from __future__ import annotations

from typing import Any

import pytest

from pyramid.config import from_dict, to_dict
from pyramid.errors import ConfigError
from pyramid.sim.config import DegradeConfig, SimConfig
from pyramid.sim.tasks import INSTRUCTIONS, instruction


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": ()},
        {"tasks": ("push-v3", "push-v3")},
        {"tasks": ("push-v2",)},
        {"n_hand": -1},
        {"size_px": 65},
        {"size_px": 8},
        {"action_noise": 1.5},
        {"fovy_deg": 0.0},
        {"look_at": (0.0, float("nan"), 0.1)},
        {"oversample": 5},
        {"max_steps": 501},
        {"camera": "corner9"},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"flicker": -0.1}, {"ghost": 1.0}, {"blur_px": -1}])
def test_impossible_damage_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DegradeConfig(**wrong)


def test_a_config_survives_plain_data() -> None:
    config = SimConfig(tasks=("reach-v3",), n_hand=3, look_at=(0.0, 0.7, 0.1), degrade=DegradeConfig(blur_px=2))
    assert from_dict(SimConfig, to_dict(config)) == config


def test_every_task_has_an_instruction_of_words_only() -> None:
    assert len(INSTRUCTIONS) == 50
    for name, text in INSTRUCTIONS.items():
        assert name.endswith("-v3")
        assert text.replace(" ", "").isalpha(), text
        assert text == text.lower().strip()


def test_a_mistyped_task_is_answered_with_the_nearest() -> None:
    assert instruction("push-v3") == "push the puck to the green target"
    with pytest.raises(ConfigError, match="did you mean 'push-v3'"):
        instruction("psuh-v3")
