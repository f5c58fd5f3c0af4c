"""Disks that fail or get full at each thing asked of them: no half file, one clear message, and the job goes on."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest
from labelling import command, events, tables

from pyramid import files
from pyramid.errors import OutputError
from pyramid.labels import run as run_module
from pyramid.labels.engine import label

Model = Callable[..., str]
FRAMES = [5, 3, 8, 4, 6, 2]


class Failing:
    """Stands in for a module as `pyramid.files` sees it; of what writes, the ``point``-th call fails.

    A write that fails has written half, as on a disk that gets full.
    """

    WRITING = ("fdopen", "fsync", "replace", "chmod", "remove", "open", "mkstemp")

    def __init__(self, real: Any, disk: Disk) -> None:
        self._real, self._disk = real, disk

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name == "fdopen":
            return self._fdopen
        return self._disk.guarded(name, found) if name in self.WRITING else found

    def _fdopen(self, handle: int, mode: str, buffering: int = -1) -> Any:
        raw = Raw(handle, mode.replace("b", ""))
        raw.disk = self._disk
        return raw if buffering == 0 else io.BufferedWriter(raw, 512)


class Raw(io.FileIO):
    """A file on such a disk."""

    disk: Disk

    def write(self, data: Any) -> int:
        if self.disk.fails("write"):
            super().write(bytes(data)[: len(data) // 2])
            raise self.disk.error()
        return super().write(data)


class Disk:
    """Counts what is asked of it; fails once, or from then on."""

    def __init__(self, point: int, code: int, *, stays: bool) -> None:
        self.point, self.code, self.stays = point, code, stays
        self.seen: list[str] = []

    def fails(self, name: str) -> bool:
        self.seen.append(name)
        n = len(self.seen) - 1
        # A full disk still lets files be removed and renamed.
        return n == self.point or (self.stays and n > self.point and name in ("write", "mkstemp"))

    def error(self) -> OSError:
        return OSError(self.code, os.strerror(self.code))

    def guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.fails(name):
                raise self.error()
            return real(*arguments, **options)

        return call


def on_disk(disk: Disk, job: Callable[[], Any]) -> OutputError | None:
    """Runs a job on a failing disk; returns how it failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", Failing(os, disk))
        patch.setattr(files, "tempfile", Failing(tempfile, disk))
        try:
            job()
        except OutputError as error:
            return error
    return None


@pytest.mark.parametrize(
    ("code", "points"),
    [(errno.ENOSPC, range(0, 999, 9)), (errno.EIO, range(3, 999, 9))]
    + [pytest.param(code, range(999), marks=pytest.mark.slow) for code in (errno.ENOSPC, errno.EIO)],
)
def test_at_whatever_the_disk_fails_the_job_goes_on_from_there(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, points: range
) -> None:
    monkeypatch.setattr(run_module, "SEAL_EVERY", 2)
    shards, path = drawing.write_shards(tmp_path / "shards", FRAMES), model(faults={drawing.key_of(2): "nan"})
    label(shards, labeler="truth", model=path, out=str(tmp_path / "whole"))
    whole, kinds = drawing.lasting(drawing.tree(tmp_path / "whole")), set()
    for point in points:
        out, disk = tmp_path / f"out-{point}", Disk(point, code, stays=code == errno.ENOSPC)

        def job(out: Path = out) -> None:
            label(shards, labeler="truth", model=path, out=str(out))

        failure = on_disk(disk, job)
        if len(disk.seen) <= point:
            break
        kinds.add(disk.seen[point])
        left = drawing.lasting(drawing.tree(out))
        final = {name: sha for name, sha in left.items() if name.endswith(".parquet")}
        assert final.items() <= whole.items(), f"a half table, or another, after point {point} of {disk.seen}"
        if failure is not None:
            assert os.strerror(code) in str(failure), f"point {point}"
            assert str(out) in str(failure), f"point {point}"
        job()
        assert (
            drawing.lasting(drawing.tree(out)).items()
            >= {name: sha for name, sha in whole.items() if name.endswith(".parquet")}.items()
        )
        assert not list(out.rglob(f"{files.TEMPORARY_PREFIX}*"))
        assert events(out), "every line of the log can be read"
        assert label(shards, labeler="truth", model=path, out=str(out)).skipped_done == 3
    every = {"mkstemp", "write", "fsync", "chmod", "replace", "open", "remove"}
    assert kinds == every if points.step == 1 else len(kinds & every) > 2


def test_a_file_that_may_not_grow_is_no_half_table(model: Model, tmp_path: Path) -> None:
    """The system itself breaks a write off in the middle."""
    shards, path, out = drawing.write_shards(tmp_path / "shards", FRAMES), model(), tmp_path / "out"
    label(shards, labeler="truth", model=path, out=str(tmp_path / "whole"))
    whole = tables(tmp_path / "whole")
    least = min((tmp_path / "whole" / name).stat().st_size for name in whole)
    process = command(shards, path, out, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (least - 1,) * 2))
    _, told = process.communicate(timeout=120)
    assert (process.returncode, tables(out)) == (1, {}), told
    assert "File too large" in told
    assert "Traceback" not in told
    label(shards, labeler="truth", model=path, out=str(out))
    assert tables(out) == whole


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_job_which_goes_on_once_there_is_room(
    small: Path, model: Model, tmp_path: Path, workers: str
) -> None:
    shards, path, out = drawing.write_shards(tmp_path / "shards", FRAMES), model(), small / "out"
    label(shards, labeler="truth", model=path, out=str(tmp_path / "whole"))
    whole = tables(tmp_path / "whole")
    one = max((tmp_path / "whole" / name).stat().st_size for name in whole)
    ballast = small / "ballast"
    # Room for a table and what belongs to it, in pages of 4 KiB, and not for all.
    ballast.write_bytes(bytes(32 * 2**10 - 4 * 4096 - (one // 4096 + 1) * 4096))
    process = command(shards, path, out, "--workers", workers)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert tables(out).items() < whole.items()
    ballast.unlink()
    for path_left in small.glob("out/*"):
        assert files.TEMPORARY_PREFIX not in path_left.name
    subprocess.run(["mount", "-o", "remount,size=512k", str(small)], check=True)
    process = command(shards, path, out, "--workers", workers)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert tables(out) == whole
