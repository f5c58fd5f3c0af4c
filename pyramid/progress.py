"""Progress on stderr: a bar on a terminal, one line every ten seconds otherwise; and the wording of sizes and times.

Results go to stdout and are none of this file's business.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_EVERY_S = 10.0
_BAR_WIDTH = 24


class Progress:
    """Counts work done towards a total; use as a context manager.

    Args:
        label: what is being done, such as ``pack``.
        total: units of work in all.
        unit: what ``frames`` count, for the rate shown.
    """

    def __init__(self, label: str, total: int, unit: str = "frames") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.amount = 0.0
        self.note = ""
        """What else is shown, such as how full a queue is."""
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal and self.done:
            self._show()
            sys.stderr.write("\n")

    def add(self, n: int = 1, amount: float = 0.0) -> None:
        """Counts ``n`` units done, which held ``amount`` of what the rate counts."""
        self.done += n
        self.amount += amount
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else LINE_EVERY_S):
            self._shown = now
            self._show()

    def _show(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        left = seconds / max(self.done, 1) * (self.total - self.done)
        rate = f", {self.amount / seconds:,.0f} {self.unit}/s" if self.amount else ""
        note = f", {self.note}" if self.note else ""
        text = f"{self.label}: {self.done}/{self.total}{rate}, {format_seconds(left)} left{note}"
        if self._terminal:
            filled = round(_BAR_WIDTH * self.done / max(self.total, 1))
            sys.stderr.write(f"\r\033[K{text} [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}]")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def say(text: str) -> None:
    """Writes one line for a person to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def format_seconds(seconds: float) -> str:
    """Returns ``0.4 s``, ``12 s``, ``3 min 20 s`` or ``5 h 02 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(n: float) -> str:
    """Returns a size with a binary unit, such as ``3.2 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
