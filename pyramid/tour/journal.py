"""The demo's journal: says what each stage does and gave, and keeps results that have no receipts of their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from pyramid import files
from pyramid.command import to_json
from pyramid.progress import format_seconds

STAGES = "_stages"


class Journal:
    """Prints the stages as they go and remembers their results.

    Args:
        out: the demo's folder.
        total: stages in all.
    """

    def __init__(self, out: str, total: int) -> None:
        self.out, self.total, self.number = out, total, 0
        self.results: dict[str, Any] = {}
        self.start = time.monotonic()

    def stage(self, title: str, explanation: str) -> None:
        """Announces a stage."""
        self.number += 1
        since = format_seconds(time.monotonic() - self.start)
        self.say(f"\n[{self.number}/{self.total}] {title} ({since})\n      {explanation}")

    def say(self, text: str) -> None:
        """Writes to the terminal: on stderr, since stdout belongs to the result."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def show(self, text: object) -> None:
        """Writes a result, indented under its stage."""
        self.say("\n".join(f"      {line}" for line in str(text).splitlines()))

    def kept(self, name: str, inputs: list[str], make: Callable[[], Any]) -> dict[str, Any]:
        """Returns a stage's result as plain data; made once for the same inputs, then read back.

        Args:
            name: file name of the result.
            inputs: digests that decide it.
            make: makes the result, a dataclass with a readable ``repr``.
        """
        path = files.join(self.out, STAGES, f"{name}.json")
        digest = files.digest(inputs)
        if files.exists(path):
            found = files.read_json(path)
            if found.get("digest") == digest:
                self.show(f"{found['text']}\n(found done)")
                return dict(found["result"])
        result = make()
        data = to_json(result)
        files.write_json(path, {"digest": digest, "text": repr(result), "result": data})
        self.show(repr(result))
        return data
