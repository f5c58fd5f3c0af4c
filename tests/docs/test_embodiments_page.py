"""docs/embodiments.md says what is shipped, and its example is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from robots import write_robot_shards

from pyramid.actions.read import body_presets, read_body
from pyramid.actions.rotations import WIDTHS
from pyramid.actions.spec import ActionPart, PartKind, Representation, StatePart
from pyramid.config import load_yaml
from pyramid.mixture.spec import MixtureSpec, from_dict
from pyramid.mixture.verbs import mix_show
from pyramid.rng import rng

PAGE = (Path(__file__).parents[2] / "docs/embodiments.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
YAML = [text for language, text in BLOCKS if language == "yaml"]


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with a word."""
    table = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table, first
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_the_table_has_every_shipped_body_as_it_is() -> None:
    found = {}
    for name in body_presets():
        spec = read_body(name)
        moved = [n for n, part in spec.action.items() if part.representation == "relative"]
        rate = f"{spec.rate_hz:g}" if spec.rate_hz else "any"
        found[f"`{name}`"] = [str(spec.state_dim), str(spec.action_dim), rate, ", ".join(moved)]
    assert {row[0]: row[1:] for row in rows("name")} == found


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("`kind`", get_args(PartKind)),
        ("`representation`", get_args(Representation)),
        ("`rotation`", [n for n in WIDTHS if not n.startswith("euler")] + ["euler_angles_rpy"]),
        ("`normalizer`", ["q01_q99", "min_max", "mean_std", "binary", "sin_cos", "identity"]),
    ],
)
def test_the_tables_have_every_word(head: str, names: list[str]) -> None:
    assert sorted(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(head)))) == sorted(names)
    if head == "`normalizer`":
        for name in names:
            StatePart(start=0, end=1, kind="binary" if name == "binary" else "joints", normalizer=name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="binary"):
            ActionPart(start=0, end=1, normalizer="binary")


def test_the_example_is_run(tmp_path: Path) -> None:
    (tmp_path / "lab_arm.yaml").write_text(YAML[1])
    (tmp_path / "mixture.yaml").write_text(YAML[2])
    code, printed = (next(text for language, text in BLOCKS if language == kind) for kind in ("python", "text"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == printed
    draw = rng(0, "page")
    turn = draw.normal(size=(24, 4))
    state = np.concatenate([draw.random((24, 3)), turn, draw.random((24, 2))], 1).astype(np.float32)
    action = np.concatenate([draw.random((24, 7)), draw.integers(0, 2, (24, 1))], 1).astype(np.float32)
    write_robot_shards(tmp_path / "shards", [(state[:12], action[:12]), (state[12:], action[12:])])
    shown = mix_show(str(tmp_path / "mixture.yaml"), statistics=True, relative=True)
    assert "actions of lab: relative: hand; absolute: opening, pump" in repr(shown)
    kinds = [row["kind"] for row in shown.statistics]
    assert [kinds.count(k) for k in ("action", "state", "action_0", "action_3")] == [8, 9, 9, 9]


def test_the_first_mixture_names_what_is_shipped() -> None:
    spec = from_dict(MixtureSpec, load_yaml(YAML[0]))
    assert spec.tiers["top"].sources["robot"].declaration in body_presets()
