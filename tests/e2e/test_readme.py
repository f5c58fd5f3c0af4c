"""Every command of the README is run, in the directory of a user who has just run the demo."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from demo_runs import environment, run

from pyramid.verbs import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_is_of_a_known_kind() -> None:
    assert {command.split()[0] for command in commands()} == {"make", "pyramid"}
    assert len(commands()) >= 18


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    """What they run is the demo and this very suite; here it is checked that make knows them."""
    done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert command.split()[1] in done.stdout


@pytest.mark.sim
def test_commands_of_the_verbs_run_as_they_stand(small_demo: Path) -> None:
    """In the order of the README, each on what those before it wrote; the demo on videos has a test of its own."""
    for command in commands():
        words = shlex.split(command)
        if words[0] != "pyramid" or words[1] == "demo":
            continue
        done = run(*words[1:], cwd=small_demo)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), f"{command} printed nothing"


@pytest.mark.sim
@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme_runs(code: str, small_demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=small_demo, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.sim
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", (ROOT / "docs/formats.md").read_text(), re.DOTALL))
def test_python_of_the_formats_page_runs(code: str, small_demo: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=small_demo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "human" in done.stdout or "folder-" in done.stdout


def test_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1]
    for folder in ("pyramid", "lam", "idm", "neural_traj", "vla", "configs", "tests", "benchmarks", "docs"):
        assert f"\n{folder}/" in tree
        assert (ROOT / folder).is_dir()
    rooms = {path.name for path in (ROOT / "pyramid").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert all(f"\n  {room}/" in tree for room in rooms), rooms


def test_every_verb_has_its_section() -> None:
    headings = " ".join(re.findall(r"^## (.*)$", (ROOT / "docs/verbs.md").read_text(), re.MULTILINE))
    missing = [verb.name for verb in VERBS if not all(word in headings for word in verb.name.split())]
    assert not missing, missing
