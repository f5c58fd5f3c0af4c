"""A labeler that reads the truth off the pictures, and breaks in the ways that its model file asks for."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa

from pyramid.errors import DataError, SkipItemError
from pyramid.files import digest
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.shards.reader import Sample

ERRORS = {
    "SkipItemError": lambda: SkipItemError("no_pairs", "nothing to compare"),
    "DataError": lambda: DataError("broken"),
    "ValueError": lambda: ValueError("broken"),
    "RuntimeError": lambda: RuntimeError("broken"),
    "KeyError": lambda: KeyError("broken"),
    "ZeroDivisionError": lambda: ZeroDivisionError("broken"),
    "SystemExit": lambda: SystemExit("over"),
    "KeyboardInterrupt": KeyboardInterrupt,
}


class Truth:
    """Says of every frame which number is drawn on it. ``faults`` maps keys of clips to what goes wrong with them."""

    name = "honest"  # Not the name that it is installed by.

    def __init__(self, model: str) -> None:
        self.config = json.loads(Path(model).read_text())
        self.faults: dict[str, str] = self.config.get("faults", {})
        self._schema_fails_in = 0

    def digest(self) -> str:
        return digest(self.config)

    def metadata(self) -> dict[str, Any]:
        return {"unit": "number", "rate_hz": 10.0}

    def schema(self) -> pa.Schema:
        self._schema_fails_in -= 1
        if self._schema_fails_in == 0:
            raise RuntimeError("no schema any more")
        missing = self.config.get("without")
        own = [("action", pa.list_(pa.float32())), ("n", pa.uint8())]
        return pa.schema([field for field in (*BASE_FIELDS, *own) if field[0] != missing])

    def label(self, samples: Sequence[Sample]) -> list[pa.Table]:
        tables = [self._table(sample) for sample in samples]
        kinds = {self.faults.get(sample.key) for sample in samples}
        if "too many" in kinds:
            tables.append(tables[0])
        if "too few" in kinds:
            tables.pop()
        if "schema" in kinds:
            self._schema_fails_in = 2  # Once for the check of these tables; then nothing can be written.
        return None if "none" in kinds else tables  # type: ignore[return-value]

    def _first_time(self, key: str) -> bool:
        mark = Path(self.config["marks"], key)
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _table(self, sample: Sample) -> pa.Table:
        fault = self.faults.get(sample.key, "")
        time.sleep(float(os.environ.get("TRUTH_DELAY_S", "0")))
        if fault in ERRORS:
            raise ERRORS[fault]()
        if fault == "hang":
            time.sleep(600)
        if fault == "crash" or (fault == "crash once" and self._first_time(sample.key)):
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = np.asarray(drawing.read_pictures(sample.frames()), np.float32) + self.config.get("offset", 0)
        n = len(numbers)
        columns = {
            "key": [drawing.key_of(999) if fault == "wrong key" else sample.key] * n,
            "t_s": sample.times_s[::-1] if fault == "wrong order" else sample.times_s,
            "frame": np.arange(n, dtype=np.int32) + (1 if fault == "past the end" else 0),
            "gap_s": np.full(n, 0.1, np.float32),
            "flags": np.zeros(n, np.uint16),
            "action": [[float("nan") if fault == "nan" else float(v), 0.0] for v in numbers],
            "n": pa.array([None if fault == "null" else 1] * n, pa.uint8()),
        }
        schema = self.schema()
        if fault == "wrong type":
            columns["gap_s"] = np.full(n, 0.1)
            schema = schema.set(3, pa.field("gap_s", pa.float64()))
        if fault == "more columns":
            columns["extra"] = np.zeros(n)
            schema = schema.append(pa.field("extra", pa.float64()))
        if fault == "no rows":
            return schema.empty_table()
        return pa.table(columns, schema=schema)


@dataclass(frozen=True)
class Shown:
    """What `Prepared` wants to know of a sample: everything but its pictures, and what is drawn on them."""

    key: str
    times_s: np.ndarray
    numbers: tuple[int, ...]
    pid: int

    def frames(self) -> np.ndarray:
        return drawing.pictures(self.numbers, 32, 32)

    def __len__(self) -> int:
        return len(self.times_s)


def read_numbers(sample: Sample) -> Shown:
    """The first step of `Prepared`; refuses clips of two frames."""
    if len(sample) == 2:
        raise SkipItemError("short", f"{sample.key}: two frames")
    return Shown(sample.key, sample.times_s, tuple(drawing.read_pictures(sample.frames())), os.getpid())


class Prepared(Truth):
    """Says the same from what its first step has read."""

    prepare = staticmethod(read_numbers)

    def label(self, samples: Sequence[Shown]) -> list[pa.Table]:  # type: ignore[override]
        if "decoded_by" in self.config:
            Path(self.config["decoded_by"], f"{samples[0].pid}-{os.getpid()}").touch()
        return super().label(samples)  # type: ignore[arg-type]


def load_prepared(model: str, device: str = "cpu") -> Prepared:
    """The entry point of a labeler with a first step."""
    del device
    return Prepared(model)


def load(model: str, device: str = "cpu") -> Truth:
    """The entry point."""
    del device
    return Truth(model)
