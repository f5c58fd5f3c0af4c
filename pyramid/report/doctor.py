"""The verb ``doctor``: what this machine can do, and how to mend what it cannot."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata

from pyramid.errors import ExitCode, PyramidError
from pyramid.progress import format_bytes

_CODECS = ("h264", "hevc", "vp9", "av1")
_ENOUGH_BYTES = 5 * 2**30


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What."""
    ok: bool
    """Whether it works."""
    found: str
    """What was found."""
    fix: str = ""
    """How to mend it; empty when it works."""
    needed: bool = True
    """False for what only some verbs need."""


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """What this machine can do."""

    checks: list[Check] = field(default_factory=list)
    """In the order they were made."""

    @property
    def exit_code(self) -> ExitCode:
        """Failed if something is missing that every verb needs."""
        return ExitCode.FAILED if any(c.needed and not c.ok for c in self.checks) else ExitCode.DONE

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        marks = {True: "ok  ", False: "no  "}
        lines = [f"{marks[c.ok]}{c.name.ljust(width)}  {c.found}{f' -> {c.fix}' if c.fix else ''}" for c in self.checks]
        return "\n".join(lines)


def doctor() -> DoctorResult:
    """Looks at Python, libraries, codecs, devices, rendering and disk."""
    checks = [
        _python(),
        *_versions(),
        _video(),
        _decoders(),
        _torch(),
        _onnx(),
        _labelers(),
        _presets(),
        _simulator(),
        _disk(),
    ]
    return DoctorResult(checks=checks)


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check(
        name="python", ok=ok, found=platform.python_version(), fix="" if ok else "install Python 3.11 or newer"
    )


def _versions() -> list[Check]:
    found = []
    for module in (
        "torch",
        "av",
        "decord",
        "webdataset",
        "vector_quantize_pytorch",
        "transformers",
        "lightning",
        "pyarrow",
        "s3fs",
    ):
        found.append(_guarded(module, partial(_import, module), f"pip install {module.replace('_', '-')}"))
    return found


def _import(module: str) -> str:
    loaded = importlib.import_module(module)
    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:  # decord2 is imported as decord
        return str(getattr(loaded, "__version__", "present"))


def _guarded(name: str, look: Callable[[], str], fix: str, *, needed: bool = True) -> Check:
    try:
        return Check(name=name, ok=True, found=look(), needed=needed)
    except (ImportError, OSError, PyramidError, RuntimeError) as error:
        return Check(name=name, ok=False, found=" ".join(str(error).split())[:160], fix=fix, needed=needed)


def _video() -> Check:
    import av

    missing = [codec for codec in _CODECS if codec not in av.codecs_available]
    ok = not missing and "libx264" in av.codecs_available
    return Check(
        name="video codecs",
        ok=ok,
        found=f"decodes {', '.join(c for c in _CODECS if c not in missing)}; encodes H.264",
        fix="" if ok else "pip install --force-reinstall av",
    )


def _decoders() -> Check:
    """Tells who can decode source videos; PyAV is enough."""
    names = [name for name in ("av", "decord") if importlib.util.find_spec(name)]
    said = {"av": "PyAV (auto)", "decord": f"{_decord_package()} (--decoder decord)"}
    return Check(
        name="video decoders",
        ok="av" in names,
        found=", ".join(said[name] for name in names),
        fix="" if "av" in names else "pip install av",
    )


def _decord_package() -> str:
    for name in ("decord", "decord2"):  # Both are imported as decord.
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "decord"


def _torch() -> Check:
    import torch

    from pyramid.nn.keypoints import multiplies_bfloat16

    if torch.cuda.is_available():
        return Check(name="device", ok=True, found=f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    units = torch.backends.cpu.get_cpu_capability()
    half = "bfloat16 is fast" if multiplies_bfloat16(torch.device("cpu")) else "bfloat16 is slow"
    found = f"no GPU; CPU with {torch.get_num_threads()} threads, {units}, {half}"
    return Check(name="device", ok=True, found=found)


def _onnx() -> Check:
    import onnxruntime

    return Check(name="onnx runtime", ok=True, found=", ".join(onnxruntime.get_available_providers()))


def _labelers() -> Check:
    from pyramid.labels.protocol import labeler_names

    names = labeler_names()
    ok = {"lam", "idm"} <= set(names)
    return Check(
        name="labelers", ok=ok, found=", ".join(names) or "none", fix="" if ok else "pip install latent-pyramid again"
    )


def _presets() -> Check:
    from pyramid.config import preset_folder, presets

    ok = bool(presets())
    return Check(
        name="presets", ok=ok, found=f"{len(presets())} in {preset_folder()}", fix="" if ok else "install again"
    )


def _simulator() -> Check:
    def look() -> str:
        from pyramid.sim import backend

        tasks = backend.environments()
        backend.check_display()
        return f"Meta-World with {len(tasks)} tasks, drawing with {backend.mujoco().gl_context.GLContext.__module__}"

    return _guarded(
        "simulator", look, "pip install 'latent-pyramid[sim]'; apt-get install libegl1 libegl-mesa0", needed=False
    )


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    ok = free > _ENOUGH_BYTES
    return Check(
        name="disk", ok=ok, found=f"{format_bytes(free)} free here", fix="" if ok else "make room", needed=False
    )
