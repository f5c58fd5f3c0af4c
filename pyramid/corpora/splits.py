"""Who is held out: whole persons where they are known, whole videos elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from pyramid.corpora.source import ScanConfig, Source
from pyramid.rng import seed_of


def group_of(source: Source, corpus: str) -> str:
    """Returns what must not be torn apart: the person of a video, or the video that it shows."""
    return f"{corpus}/person/{source.person}" if source.person else f"{corpus}/{source.origin or source.name}"


def held_out(groups: Iterable[str], config: ScanConfig) -> frozenset[str]:
    """Returns the groups that are ``val``: a keyed share, and at least one where there are two.

    A group's draw depends on its name and the seed alone, so that more data moves none of them.
    """
    draws = {group: seed_of(config.seed, "split", group) / 2**63 for group in groups}
    held = {group for group, draw in draws.items() if draw < config.val_share}
    if not held and len(draws) > 1 and config.val_share > 0:
        held = {min(draws, key=lambda group: draws[group])}
    if held and len(held) == len(draws):
        held.discard(max(draws, key=lambda group: draws[group]))
    return frozenset(held)
