"""What checking an artefact found: how much there is, what is bad and why, and what is merely odd."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_LISTED = 1000
"""Faults that are listed one by one; the rest are counted."""


@dataclass(kw_only=True)
class Findings:
    """What a check found; grows while it looks."""

    files: int = 0
    """Files of data that were looked into."""
    items: int = 0
    """Episodes or clips in them."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of what cannot be used as it is."""
    notes: list[str] = field(default_factory=list)
    """What is claimed and not so, and hurts no reader; sentences for a person."""
    unlisted: int = 0
    """Faults past the first `MAX_LISTED`."""

    def refuse(self, path: str, reason: str) -> None:
        """Notes a fault; a file with many is still told in bounded memory."""
        if len(self.bad) < MAX_LISTED:
            self.bad.append((path, reason))
        else:
            self.unlisted += 1

    def remark(self, sentence: str) -> None:
        """Notes an oddity."""
        if len(self.notes) < MAX_LISTED and sentence not in self.notes:
            self.notes.append(sentence)

    def all_bad(self) -> list[dict[str, str]]:
        """Returns ``path`` and ``reason`` of each fault; the last entry counts those that are not listed."""
        listed = [{"path": path, "reason": reason} for path, reason in self.bad]
        if self.unlisted:
            listed.append({"path": self.bad[-1][0], "reason": f"and {self.unlisted} faults more"})
        return listed
