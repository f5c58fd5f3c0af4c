"""An environment for each peer: its own versions of what it needs, everything else shared with the caller's."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

CACHE = Path.home() / ".cache" / "latent-pyramid-bench"
PACKAGES = {
    "webdataset": "webdataset",
    "streaming": "mosaicml-streaming",
    "litdata": "litdata",
    "energon": "megatron-energon",
}
"""What is installed for each loader."""


def python_of(name: str) -> tuple[str, str]:
    """Returns the interpreter of a loader's environment, made if it is not there; or "" and why there is none."""
    if name == "ours":
        return sys.executable, ""
    folder = CACHE / PACKAGES[name]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        done = subprocess.run(make, capture_output=True, check=False)
        if done.returncode:
            return "", f"no environment: {done.stderr.decode().strip()[-200:]}"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # After its own packages, those of the caller: torch is not installed four times.
        shared = folder / "lib" / version / "site-packages" / "shared.pth"
        shared.write_text(sysconfig.get_path("purelib") + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", PACKAGES[name]]
        done = subprocess.run(install, capture_output=True, check=False)
        if done.returncode:
            return "", f"pip install {PACKAGES[name]}: {done.stderr.decode().strip()[-200:]}"
        ready.touch()
    return str(python), ""


def version_of(name: str, python: str) -> str:
    """Returns the installed version of a loader."""
    package = PACKAGES.get(name, "latent-pyramid")
    code = f"from importlib.metadata import version; print(version('{package}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
