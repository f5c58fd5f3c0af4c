"""Something-Something v2: short WebM videos of hands, each with a sentence made of a template.

Template and placeholders become verb and noun: ``Putting [something] on a surface`` with ``["cup"]``.
"""

from __future__ import annotations

import re
from typing import Any

from pyramid.corpora.source import Found, ScanConfig, Source, is_text, split_of
from pyramid.corpora.tables import Tree, look_through, name_videos, read_table_json
from pyramid.errors import DataError
from pyramid.jobs import Quarantined

SPLITS = ("train", "validation", "test")
CLASSES = ("labels.json", "something-something-v2-labels.json")
_NUMBER = re.compile(r"[0-9]{1,9}")
_VIDEO = re.compile(r"\d{1,9}")
_HOLE = re.compile(r"\[([^\[\]]*)\]")


def find(root: str, config: ScanConfig) -> Found:
    """Lists the videos below ``root`` with the sentences of the tables; those of the test split have none."""
    tree = look_through(root, config)
    videos, skipped = name_videos(tree, _VIDEO)
    rows, aside = read_labels(tree)
    found = Found(sources=[], skipped=skipped + aside)
    refused = {item.item for item in aside}
    for name, path in videos.items():
        if name in refused:
            continue
        row = rows.pop(name, {"split": "", "text": "", "verb": "", "noun": "", "extra": {}})
        origin = "label" if row["text"] else ""
        found.sources.append(Source(name=name, video=path, text_origin=origin, **row))
    if rows:
        found.dropped["missing_video"] = len(rows)
    return found


def read_labels(tree: Tree) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """Reads the tables that are there: what is known of each video, and the rows that cannot be used.

    Raises:
        DataError: a table is no JSON list.
    """
    numbers = _classes(tree)
    labels: dict[str, dict[str, Any]] = {}
    aside: dict[str, Quarantined] = {}
    for split in SPLITS:
        path = tree.find(f"something-something-v2-{split}.json", f"{split}.json")
        table = read_table_json(path) if path else []
        if not isinstance(table, list):
            raise DataError(f"'{path}': expected a list of videos with id and label")
        for place, row in enumerate(table):
            video = row.get("id") if isinstance(row, dict) else None
            name = str(video) if is_text(video) or isinstance(video, int) else f"{path}, item {place}"
            try:
                known = _known(row, split, numbers)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                aside[name] = _refused(name, "bad_row", f"{path}, item {place} ({name}): {error}")
                continue
            if not (is_text(known["text"]) and is_text(known["verb"]) and is_text(known["noun"])):
                aside[name] = _refused(name, "not_utf8", f"{path}, item {place} ({name}): the text is not UTF-8")
            elif name in labels:
                aside[name] = _refused(name, "duplicate_id", f"{path}, item {place}: video {name} stands twice")
            else:
                labels[name] = known
    # Whoever is told of twice, and differently, is not believed at all.
    return {name: known for name, known in labels.items() if name not in aside}, list(aside.values())


def _refused(name: str, reason: str, detail: str) -> Quarantined:
    return Quarantined(item=name, reason=reason, detail=detail)


def _classes(tree: Tree) -> dict[str, int]:
    path = tree.find(*CLASSES)
    found = read_table_json(path) if path else {}
    if not isinstance(found, dict):
        raise DataError(f"'{path}': expected an object with the number of each template")
    return {str(name): int(number) for name, number in found.items() if _NUMBER.fullmatch(str(number))}


def _known(row: dict[str, Any], split: str, numbers: dict[str, int]) -> dict[str, Any]:
    """Returns what a row says: text, verb (the template without brackets), noun, extra."""
    text = row.get("label", "")
    if not (isinstance(row.get("id"), str | int) and isinstance(text, str)):
        raise ValueError("a row has an id, and a label that is a text")
    if "template" not in row:
        return {"split": split_of(split), "text": text, "verb": "", "noun": "", "extra": {"publisher_split": split}}
    template, things = row["template"], row.get("placeholders", [])
    if not (isinstance(things, list) and all(isinstance(thing, str) for thing in things)):
        raise ValueError("'placeholders' is no list of texts")
    holes = _HOLE.findall(template)
    if len(holes) != len(things):
        raise ValueError(f"the template '{template}' has {len(holes)} holes, but there are {len(things)} placeholders")
    verb = _HOLE.sub(r"\1", template)
    extra: dict[str, Any] = {"publisher_split": split, "template": template, "placeholders": things}
    if verb in numbers:
        extra["verb_class"] = numbers[verb]
    rest = iter(things)
    text = text or _HOLE.sub(lambda _: next(rest), template)
    return {"split": split_of(split), "text": text, "verb": verb, "noun": ", ".join(things), "extra": extra}
