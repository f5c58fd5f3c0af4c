"""Receipts of jobs: where they lie, and how many of them are read at the cost of a few requests.

What a receipt says, and whether it still holds, is left to `pyramid.jobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyramid import files
from pyramid.errors import DataError

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


def read_all(folder: str, names: Iterable[str]) -> dict[str, Any]:
    """Returns the content of the receipts that are there and readable, by unit name."""
    there = files.entries(files.join(folder, RECEIPTS))
    wanted = {name: there[f"{name}.json"] for name in names if f"{name}.json" in there}
    if not files.is_remote(folder):
        return {name: data for name in wanted if (data := _read(path_of(folder, name))) is not None}
    known = _gathered(folder) if len(wanted) >= _WORTH_IT else {}
    found = {n: known[n]["receipt"] for n, entry in wanted.items() if n in known and known[n]["tag"] == entry.tag}
    missing = [name for name in wanted if name not in found]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(_read, [path_of(folder, name) for name in missing])
        found |= {name: data for name, data in zip(missing, read, strict=True) if data is not None}
    return found


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


def gather(folder: str, receipts: Mapping[str, Any]) -> None:
    """Writes the receipts of a remote folder into one file, for whoever goes on there; locally there is no need."""
    if not files.is_remote(folder) or len(receipts) < _WORTH_IT:
        return
    there, room = files.entries(files.join(folder, RECEIPTS)), _MAX_BYTES
    kept = {}
    for name, data in receipts.items():
        entry = there.get(f"{name}.json")
        room -= entry.size if entry else 0
        if entry and room >= 0:
            kept[name] = {"tag": entry.tag, "receipt": data}
    files.write_text(files.join(folder, GATHERED), files.canonical_json(kept))


def outputs(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Returns the sizes of those files below ``folder`` that are there: one listing for each folder among them."""
    wanted = set(names)
    folders = {name.rpartition("/")[0] for name in wanted}
    found = {
        f"{inner}/{name}".lstrip("/"): entry.size
        for inner in folders
        for name, entry in files.entries(files.join(folder, inner) if inner else folder).items()
    }
    return {name: found[name] for name in wanted if name in found}


def _read(path: str) -> Any:
    try:
        return files.read_json(path)
    except DataError:
        return None  # An unreadable receipt is no receipt.


def _gathered(folder: str) -> dict[str, Any]:
    data = _read(files.join(folder, GATHERED))
    items = data.items() if isinstance(data, dict) else ()
    return {name: item for name, item in items if isinstance(item, dict) and {"tag", "receipt"} <= set(item)}
