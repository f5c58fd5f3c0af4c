"""JSON documents larger than the memory: where each entry lies, found in one pass, read one by one when needed.

What an entry means is left to the corpora.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from pyramid import files
from pyramid.corpora.tables import parse_json
from pyramid.errors import DataError, UnsafeInputError

_PIECE = 2**20
MAX_ENTRY_BYTES = 512 * 2**20
"""Largest single entry."""
_ENDS = tuple(" \t\n\r,:]}")
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Entry:
    """One value of a document, and where it lies."""

    path: str
    """The document."""
    key: str
    """Its name in an object; empty in an array."""
    offset: int
    """First byte."""
    size: int
    """Bytes."""

    def load(self) -> Any:
        """Reads the value."""
        data = files.read_range(self.path, self.offset, self.size)
        return parse_json(data, f"'{self.path}', byte {self.offset}")


def entries(path: str, inside: str = "", *, or_all: bool = False) -> Iterator[tuple[Entry, Any]]:
    """Yields the members of a document's object, or those of the array or object that its member ``inside`` holds.

    The values are parsed with every byte as a letter, which is right for structure and plain ASCII; `Entry.load` gives
    the true texts.

    Args:
        path: the document.
        inside: name of a member; empty for the document itself.
        or_all: yield the document's other members, too.

    Raises:
        DataError: the document is no such JSON; the byte is named.
    """
    with files.open_read(path) as stream:
        text = _Text(stream, path)
        text.take("{")
        for _ in text.members("}"):
            name = text.key()
            if inside and name == inside and (opening := text.peek()) in ("[", "{"):
                text.take(opening)
                for keyed in text.members("]" if opening == "[" else "}"):
                    yield text.value(text.key() if keyed else "")
            else:
                found = text.value(name)
                if or_all or not inside:
                    yield found


class _Text:
    """A document seen through a window that moves on, one letter a byte."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.text, self.at, self.base = "", 0, 0
        self.ended = False
        self.decoder = json.JSONDecoder()

    def _more(self) -> None:
        self.base, self.text, self.at = self.base + self.at, self.text[self.at :], 0
        if len(self.text) > MAX_ENTRY_BYTES:
            raise UnsafeInputError(f"'{self.path}': the entry at byte {self.base} is larger than {MAX_ENTRY_BYTES}")
        # Twice as much each time, so that a long entry is not parsed for every piece of it.
        piece = self.stream.read(max(_PIECE, len(self.text)))
        self.ended = not piece
        self.text += piece.decode("latin-1")

    def _wrong(self, what: str) -> DataError:
        return DataError(f"'{self.path}', byte {self.base + self.at}: {what}; the file is damaged or cut short")

    def peek(self) -> str:
        """Returns the next letter that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def take(self, letter: str) -> None:
        """Steps over a letter."""
        if self.peek() != letter:
            raise self._wrong(f"'{letter}' expected")
        self.at += 1

    def members(self, closing: str) -> Iterator[bool]:
        """Stops at each member of an object or array, and steps behind it at the end; True for members with a key."""
        if self.peek() == closing:
            self.at += 1
            return
        while True:
            yield closing == "}"
            if self.peek() == closing:
                self.at += 1
                return
            self.take(",")

    def key(self) -> str:
        """Reads a member's name and the colon behind it."""
        if self.peek() != '"':
            raise self._wrong("a name in quotes expected")
        _, name = self.value("")
        self.take(":")
        return str(name)

    def value(self, key: str) -> tuple[Entry, Any]:
        """Reads any value."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self._wrong(f"not JSON ({error.msg})") from error
            except RecursionError as error:
                raise self._wrong("nested too deeply") from error
            else:
                # Without what ends it, a number may go on in the next piece: "1", ".5", "e3".
                if self.text[end : end + 1] in _ENDS or self.ended:
                    entry = Entry(self.path, key, self.base + self.at, end - self.at)
                    self.at = end
                    return entry, found
            self._more()
