"""Instructions in the names of generated clips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid.corpora.naming import MAX_INSTRUCTION_CHARS, dreamgen_name, parse_dreamgen_name


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("3_push_the_puck_to_the_green_goal", (3, "push the puck to the green goal")),
        ("0_Open_the_drawer", (0, "Open the drawer")),
        ("007_pick__up___the_cup_", (7, "pick up the cup")),
        ("12_pour_250_ml", (12, "pour 250 ml")),
        ("4_öffne_die_tür", (4, "öffne die tür")),
        ("5_put the cup-holder away", (5, "put the cup-holder away")),
    ],
)
def test_reads_number_and_instruction(stem: str, expected: tuple[int, str]) -> None:
    assert parse_dreamgen_name(stem) == expected


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "clip",
        "3",
        "3_",
        "_push",
        "push_3",
        "14_0_robocasa_multiview",
        "5_1",
        "3-push",
        "x3_push",
        "3_push\nnow",
        "-3_push",
    ],
)
def test_a_name_without_an_instruction_is_none(stem: str) -> None:
    assert parse_dreamgen_name(stem) is None


def test_an_endless_name_is_none() -> None:
    assert parse_dreamgen_name("1_" + "a" * MAX_INSTRUCTION_CHARS) == (1, "a" * MAX_INSTRUCTION_CHARS)
    assert parse_dreamgen_name("1_" + "a" * (MAX_INSTRUCTION_CHARS + 1)) is None
    assert parse_dreamgen_name("1" * 10 + "_push") is None


@given(st.integers(0, 999_999_999), st.lists(st.from_regex(r"[a-z]+", fullmatch=True), min_size=1, max_size=12))
def test_what_is_written_is_read_back(index: int, words: list[str]) -> None:
    assert parse_dreamgen_name(dreamgen_name(index, " ".join(words))) == (index, " ".join(words))


@given(st.text(max_size=60))
def test_never_raises_and_never_returns_an_empty_instruction(stem: str) -> None:
    parsed = parse_dreamgen_name(stem)
    assert parsed is None or (parsed[1].strip() == parsed[1] != "" and parsed[0] >= 0)


def test_punctuation_separates_words() -> None:
    assert dreamgen_name(2, "Push the puck, then stop.") == "2_Push_the_puck_then_stop"


@pytest.mark.parametrize(("index", "instruction"), [(0, ""), (0, "3 cups"), (0, "..."), (-1, "push"), (10**9, "push")])
def test_what_could_not_be_read_back_is_refused(index: int, instruction: str) -> None:
    with pytest.raises(ValueError, match=r"instruction|number"):
        dreamgen_name(index, instruction)
