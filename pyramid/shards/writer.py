"""Writes one shard: a reproducible tar with the samples' members adjacent, and the index rows for it.

Which samples go into which shard is left to `pyramid.shards.pack`.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from pyramid import files
from pyramid.errors import DataError
from pyramid.shards.layout import MEMBERS
from pyramid.types import KEY_PATTERN

_BLOCK = 512


def write_shard(path: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[dict[str, Any]]:
    """Writes ``(key, {member: bytes})`` samples as a webdataset tar, atomically.

    The bytes depend on the samples alone: no times, no owners.

    Returns:
        One row per sample: ``shard, key, offset, size, sha256`` and the shard's own ``shard_sha256, shard_bytes``.

    Raises:
        DataError: a key that stands twice or is not a key, or a member that no reader knows.
    """
    rows: list[dict[str, Any]] = []
    total = hashlib.sha256()
    shard = path.rsplit("/", 1)[-1]
    with files.atomic_write(path) as out:
        offset = 0
        for key, members in samples:
            _check(key, members, {row["key"] for row in rows})
            data = _tar_members(key, members)
            rows.append(
                {"shard": shard, "key": key, "offset": offset, "size": len(data), "sha256": files.sha256_bytes(data)}
            )
            out.write(data)
            total.update(data)
            offset += len(data)
        end = bytes(2 * _BLOCK)  # Two empty blocks close a tar.
        out.write(end)
        total.update(end)
    closing = {"shard_sha256": total.hexdigest(), "shard_bytes": offset + len(end)}
    return [{**row, **closing} for row in rows]


def _check(key: str, members: Mapping[str, bytes], seen: set[str]) -> None:
    if not KEY_PATTERN.fullmatch(key):
        raise DataError(f"'{key}' is no sample key; keys look like corpus-0123456789ab-0000")
    if key in seen:
        raise DataError(f"the key '{key}' stands twice in one shard")
    unknown = sorted(set(members) - set(MEMBERS))
    if unknown:
        raise DataError(f"sample '{key}': members {unknown} are not part of the format; known: {', '.join(MEMBERS)}")


def _tar_members(key: str, members: Mapping[str, bytes]) -> bytes:
    parts = []
    for name in MEMBERS:
        if name in members:
            entry = tarfile.TarInfo(f"{key}.{name}")
            entry.size, entry.mode, entry.mtime = len(members[name]), 0o644, 0
            padding = bytes(-len(members[name]) % _BLOCK)
            parts += [entry.tobuf(tarfile.USTAR_FORMAT), members[name], padding]
    return b"".join(parts)
