"""The wheel holds everything: installed outside the checkout, the command runs and finds its presets."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; the libraries that it needs are borrowed from the running one."""
    folder = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    # A path file is not followed into another, so the checkout's editable install stays unseen.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--quiet", str(wheel)], check=True
    )
    return folder


def call(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(installed / "bin/pyramid"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def test_wheel_holds_packages_and_presets(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in ("pyramid/cli.py", "lam/train.py", "idm/train.py", "neural_traj/judge.py", "vla/deploy/runtime.py"):
        assert expected in names
    for preset in sorted((ROOT / "configs").rglob("*.yaml")):
        assert f"pyramid/configs/{preset.relative_to(ROOT / 'configs')}" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_preset_is_found_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed / "bin/python", "-c", "import pyramid; print(pyramid.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in where.stdout
    done = call(installed, "train", "lam", "--config", "lam/tiny", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "300 steps" in done.stdout
    assert "nothing written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_wrong_preset_is_named(installed: Path, tmp_path: Path) -> None:
    done = call(installed, "train", "lam", "--config", "lam/tyni", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'lam/tiny'?" in done.stderr


def test_mixed_up_installation_is_recognised(installed: Path, tmp_path: Path) -> None:
    """The web framework of the same import name puts its files into the same folder."""
    site = next((installed / "lib").glob("python*/site-packages"))
    stranger = site / "pyramid/asset.py"
    stranger.write_text("")
    try:
        done = call(installed, "--help", cwd=tmp_path)
    finally:
        stranger.unlink()
    assert done.returncode != 0
    assert "web framework" in done.stderr
    assert "cannot live in one environment" in done.stderr
