"""The door to MuJoCo and Meta-World: imported on first use, with what is missing said in words.

What is done with them is left to `env` and `render`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from pyramid.errors import MissingDependencyError

_INSTALL = "pip install 'latent-pyramid[sim]'"
_NO_EGL = (
    "MuJoCo finds no way to draw without a screen ({cause}). On Debian or Ubuntu: "
    "apt-get install libegl1 libegl-mesa0; no GPU is needed"
)


@cache
def mujoco() -> Any:
    """Returns the module ``mujoco``, set to draw without a screen (EGL) unless ``MUJOCO_GL`` says otherwise.

    Raises:
        MissingDependencyError: the package, or libEGL, is not installed.
    """
    # Read by MuJoCo once, while it is imported.
    os.environ.setdefault("MUJOCO_GL", "egl")
    _load_triton_first()
    with explained():
        import mujoco as module
    return module


def _load_triton_first() -> None:
    """Loads Triton before the drawing library: both bring an LLVM, and Triton's crashes when it comes second.

    Seen with Mesa 22.3 (LLVM 15) and Triton 3.8: ``import torch`` after the first picture is a segmentation fault.
    """
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton._C.libtriton")


@cache
def environments() -> Any:
    """Returns Meta-World's environment classes by task name; their observations hold the goal, as the experts need.

    Raises:
        MissingDependencyError: Meta-World, or what it needs, is not installed.
    """
    mujoco()
    with explained():
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    suffix = "-goal-observable"
    return {name.removesuffix(suffix): cls for name, cls in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE.items()}


@cache
def experts() -> Any:
    """Returns Meta-World's scripted policies by task name."""
    mujoco()
    with explained():
        from metaworld.policies import ENV_POLICY_MAP
    return ENV_POLICY_MAP


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the ways in which MuJoCo, Meta-World and PyOpenGL say that something is not installed into one error."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the simulator needs the package '{error.name}': {_INSTALL}") from error
    except ImportError as error:
        if "EGL" not in str(error) and "egl" not in str(error):
            raise MissingDependencyError(f"the simulator cannot be imported: {error}. Reinstall: {_INSTALL}") from error
        # mujoco.egl: a libEGL without a driver behind it, or without device enumeration.
        raise MissingDependencyError(_NO_EGL.format(cause=_first_sentence(error))) from error
    except AttributeError as error:
        # PyOpenGL without libEGL.so.1 looks up the library's functions on None.
        if error.obj is not None or not str(error.name).startswith(("egl", "gl", "OSMesa")):
            raise
        raise MissingDependencyError(_NO_EGL.format(cause=f"no library has {error.name}")) from error


@contextlib.contextmanager
def explained_context() -> Iterator[None]:
    """Does what `explained` does, and the same for a drawing context that cannot be made."""
    fatal = mujoco().FatalError
    check_display()
    try:
        with explained():
            yield
    except (fatal, RuntimeError) as error:
        cause = f"{_first_sentence(error)}, with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"
        hint = "if 'mujoco' was imported before this toolkit, set MUJOCO_GL=egl before"
        raise MissingDependencyError(f"{_NO_EGL.format(cause=cause)}; {hint}") from error


@cache
def check_display() -> None:
    """Finds out whether there is a driver behind libEGL.

    Raises:
        MissingDependencyError: there is none.
    """
    # MuJoCo finds out too, but leaves objects behind whose destructors complain.
    if mujoco().gl_context.GLContext.__module__ != "mujoco.egl":
        return
    egl = importlib.import_module("mujoco.egl")
    if egl.create_initialized_egl_device_display() == egl.EGL.EGL_NO_DISPLAY:
        raise MissingDependencyError(_NO_EGL.format(cause="libEGL is there, and no driver behind it"))


@contextlib.contextmanager
def quiet_experts() -> Iterator[None]:
    """Silences the experts' warning that their actions will be clipped; they are, deliberately."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant\\(s\\) may be too high")
        yield


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")
