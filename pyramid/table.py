"""Small tables for a terminal: columns as wide as they need to be, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lays out rows of cells under a head; columns that hold numbers only are right-aligned."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(head, *cells, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(column[1:]) and all(_numeric(cell) for cell in column[1:]) for column in columns]
    lines = [_line(head, widths, right), "  ".join("-" * width for width in widths)]
    return "\n".join([*lines, *(_line(row, widths, right) for row in cells)])


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
    return "  ".join(parts).rstrip()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numeric(cell: str) -> bool:
    return bool(cell) and not cell.strip("0123456789.,-+%e")
