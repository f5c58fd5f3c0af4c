"""Exceptions, their exit codes, and how they cross process borders."""

from __future__ import annotations

import concurrent.futures

import pytest

from pyramid import errors
from pyramid.errors import ExitCode, SkipItemError, nearest


def test_exit_codes_are_what_scripts_were_promised() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "QUARANTINED": 3,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.PyramidError, 1),
        (errors.DataError, 1),
        (errors.UnsafeInputError, 1),
        (errors.OutputError, 1),
        (errors.MissingDependencyError, 1),
        (errors.ConfigError, 2),
        (errors.InterruptedJobError, 130),
    ],
)
def test_each_branch_ends_a_command_with_its_code(kind: type[errors.PyramidError], code: int) -> None:
    assert kind("why").exit_code == code
    assert isinstance(kind("why"), errors.PyramidError)


def _skip() -> None:
    raise SkipItemError("decode_error", "clip 7 is damaged")


def test_a_skipped_item_keeps_reason_and_detail_over_a_process_border() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool, pytest.raises(SkipItemError) as caught:
        pool.submit(_skip).result()
    assert (caught.value.reason, caught.value.detail, str(caught.value)) == (
        "decode_error",
        "clip 7 is damaged",
        "clip 7 is damaged",
    )


def test_nearest_names_the_nearest_or_nothing() -> None:
    assert nearest("max_step", ["max_steps", "lr"]) == "; did you mean 'max_steps'?"
    assert nearest("zebra", ["max_steps", "lr"]) == ""
    assert nearest("x", []) == ""
