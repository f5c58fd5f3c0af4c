"""Who is held out: whole persons where they are known, whole videos elsewhere.

Those who filmed one event are one: what one of them trains on, the other would be tested on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pyramid.corpora.source import ScanConfig, Source
from pyramid.rng import seed_of


def group_of(source: Source, corpus: str) -> str:
    """Returns what must not be torn apart: the event, the person of a video, or the video that it shows."""
    if source.event:
        return f"{corpus}/event/{source.event}"
    return f"{corpus}/person/{source.person}" if source.person else f"{corpus}/{source.origin or source.name}"


def events(persons: Mapping[str, str], mentions: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Joins the videos that were filmed together, and all other videos of those who filmed them.

    Args:
        persons: who filmed each video; empty when unknown.
        mentions: names that a video shares with those filmed with it: of a set, or of one of the videos.

    Returns:
        Name of the event by video, for the videos that are part of one. It is the least name in it.
    """
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def lead(node: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(node, node) != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for video, person in persons.items():
        others = [("name", name) for name in mentions.get(video, ())] + ([("person", person)] if person else [])
        for other in others:
            least, rest = sorted((lead(("name", video)), lead(other)))
            leader[rest] = least
    shared = {lead(("name", video)) for video in persons if mentions.get(video)}
    return {video: lead(("name", video))[1] for video in persons if lead(("name", video)) in shared}


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
