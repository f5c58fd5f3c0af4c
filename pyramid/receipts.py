"""Receipts of jobs: where they lie, and how many of them are read at the cost of a few requests.

What a receipt says, and whether it still holds, is left to `pyramid.jobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyramid import files
from pyramid.errors import DataError
from pyramid.remote import Entry

RECEIPTS = "_receipts"
SEALED = "sealed"
"""Folder beside the receipts that holds many of them in each file; a receipt of its own counts before a sealed one, and
a later file before an earlier one."""
GATHERED = "_receipts.json"
"""A copy of a remote folder's receipts in one file. A receipt is taken from it only while its own file is still there
with the tag (ETag) that it had; without this file nothing is lost but time."""
_WORTH_IT = 16
_READERS = 16
_MAX_BYTES = 32 * 2**20


def path_of(folder: str, name: str) -> str:
    """Returns where the receipt of a unit lies."""
    return files.join(folder, RECEIPTS, f"{name}.json")


class Receipts:
    """The receipts of one folder, looked up a few at a time: what is held is one listing, and little of what they say.

    Args:
        folder: the job's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._there = files.entries(files.join(folder, RECEIPTS))
        self._listed: dict[str, Mapping[str, Entry]] = {}
        self._known: dict[str, Any] | None = None

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns the content of those receipts that are there and readable, by unit name."""
        wanted = {name: self._there[f"{name}.json"] for name in names if f"{name}.json" in self._there}
        if not files.is_remote(self.folder):
            return {name: data for name in wanted if (data := _read(path_of(self.folder, name))) is not None}
        known = self._gathered()
        found = {n: known[n]["receipt"] for n, entry in wanted.items() if n in known and known[n]["tag"] == entry.tag}
        missing = [name for name in wanted if name not in found]
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(_read, [path_of(self.folder, name) for name in missing])
            found |= {name: data for name, data in zip(missing, read, strict=True) if data is not None}
        return found

    def sizes(self, outputs: Iterable[str]) -> dict[str, int]:
        """Returns the sizes of those outputs that are there: one listing for each folder among them."""
        found = {}
        for output in outputs:
            inner, _, name = output.rpartition("/")
            if inner not in self._listed:
                self._listed[inner] = files.entries(files.join(self.folder, inner) if inner else self.folder)
            if name in self._listed[inner]:
                found[output] = self._listed[inner][name].size
        return found

    def _gathered(self) -> dict[str, Any]:
        if self._known is None:
            self._known = _gathered(self.folder) if len(self._there) >= _WORTH_IT else {}
        return self._known


def read_all(folder: str, names: Iterable[str]) -> dict[str, Any]:
    """Returns the content of the receipts that are there and readable, by unit name."""
    return Receipts(folder).read(names)


def read_each(folder: str) -> Iterator[tuple[str, Any]]:
    """Yields all receipts of a folder that can be read, by unit name, a later one after those that it replaces."""
    there = files.entries(files.join(folder, RECEIPTS))
    if SEALED in there:
        sealed = files.join(folder, RECEIPTS, SEALED)
        for number in sorted(_sealed_numbers(sealed)):
            data = _read(_sealed_path(folder, number))
            yield from data.items() if isinstance(data, dict) else ()
    yield from read_all(folder, [name.removesuffix(".json") for name in there if name.endswith(".json")]).items()


def seal(folder: str, receipts: Mapping[str, Any]) -> None:
    """Moves receipts into one file; stopped anywhere, none is lost.

    A folder with a million receipts would take minutes to read, file by file.
    """
    if not receipts:
        return
    numbers = _sealed_numbers(files.join(folder, RECEIPTS, SEALED))
    files.write_text(_sealed_path(folder, max(numbers, default=0) + 1), files.canonical_json(dict(receipts)))
    with ThreadPoolExecutor(_READERS if files.is_remote(folder) else 1) as pool:
        list(pool.map(files.remove, [path_of(folder, name) for name in receipts]))


def _sealed_path(folder: str, number: int) -> str:
    return files.join(folder, RECEIPTS, SEALED, f"{number:06d}.json")


def _sealed_numbers(folder: str) -> list[int]:
    names = [name.removesuffix(".json") for name in files.listdir(folder)]
    return [int(name) for name in names if name.isdecimal()]


class Gathering:
    """Keeps the receipts of a remote folder, as far as there is room, to write them into one file at the end."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._kept: dict[str, Any] = {}
        self._room = _MAX_BYTES if files.is_remote(folder) else 0
        self._changed = False

    def add(self, name: str, data: Any, *, new: bool) -> None:
        """Takes note of a receipt; locally there is no need."""
        self._changed |= new
        if self._room > 0:
            self._room -= len(files.canonical_json(data))
            self._kept[name] = data

    def write(self) -> None:
        """Writes what was kept, for whoever goes on there, if anything is new."""
        if not self._changed or len(self._kept) < _WORTH_IT:
            return
        there = files.entries(files.join(self.folder, RECEIPTS))
        tags = {name: entry.tag for name in self._kept if (entry := there.get(f"{name}.json"))}
        kept = {name: {"tag": tag, "receipt": self._kept[name]} for name, tag in tags.items()}
        files.write_text(files.join(self.folder, GATHERED), files.canonical_json(kept))


def _read(path: str) -> Any:
    try:
        return files.read_json(path)
    except DataError:
        return None  # An unreadable receipt is no receipt.


def _gathered(folder: str) -> dict[str, Any]:
    data = _read(files.join(folder, GATHERED))
    items = data.items() if isinstance(data, dict) else ()
    return {name: item for name, item in items if isinstance(item, dict) and {"tag", "receipt"} <= set(item)}
