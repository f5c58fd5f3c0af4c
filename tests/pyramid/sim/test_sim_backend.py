"""What is missing is said in words: packages, libEGL, a driver behind it."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from pyramid.errors import MissingDependencyError
from pyramid.sim.backend import explained


def test_a_missing_package_is_named_with_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"'metaworld'.*latent-pyramid\[sim\]"), explained():
        raise ModuleNotFoundError("No module named 'metaworld'", name="metaworld")


def test_a_missing_library_names_the_packages() -> None:
    # PyOpenGL without libEGL.so.1 keeps None where the library would be.
    library = types.SimpleNamespace(EGL=None)
    with pytest.raises(MissingDependencyError, match="libegl1 libegl-mesa0"), explained():
        library.EGL.eglQueryString  # noqa: B018


def test_a_library_without_a_driver_names_the_packages() -> None:
    with pytest.raises(MissingDependencyError, match="libegl1 libegl-mesa0"), explained():
        raise ImportError("Cannot initialize a EGL device display. This likely means that your driver does not")


def test_another_import_error_is_passed_on_as_it_is() -> None:
    with pytest.raises(MissingDependencyError, match="numpy is broken") as caught, explained():
        raise ImportError("numpy is broken")
    assert "libegl" not in str(caught.value)


def test_another_attribute_error_is_a_defect() -> None:
    with pytest.raises(AttributeError, match="upper"), explained():
        types.SimpleNamespace().upper  # noqa: B018


def test_the_package_opens_without_the_simulator() -> None:
    code = "import sys, pyramid.sim; print([m for m in ('mujoco', 'metaworld', 'torch', 'OpenGL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.sim
def test_torch_can_be_imported_after_a_picture_was_drawn(tmp_path: Path) -> None:
    """Mesa's LLVM and Triton's do not get on in the order that a user would load them in."""
    code = f"""
from pyramid.sim import make_dataset
make_dataset({str(tmp_path / "data")!r}, {{"n_hand": 1, "n_generated": 0, "n_robot": 0, "size_px": 64}})
import torch, torchvision, lightning
print(int(torch.ones(3) @ torch.ones(3)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr[-2000:]
