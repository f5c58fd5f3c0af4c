"""From videos found to clips: probes every video once, then yields its clips one by one.

Which videos and windows there are is left to the corpora, who is held out to `pyramid.corpora.splits`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pyramid import files
from pyramid.corpora.source import Found, ScanConfig, Source, Window, fingerprint, is_text
from pyramid.corpora.splits import group_of, held_out
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import Quarantined
from pyramid.types import Clip, Split
from pyramid.video.length import length_apart


@dataclass(frozen=True, slots=True)
class _Opened:
    """A video that can be used."""

    source: Source
    content: str
    duration_s: float


def cut_into_clips(found: Found, config: ScanConfig, corpus: str) -> Iterator[Clip | Quarantined]:
    """Yields the clips of every video that can be used, and what is set aside, in the order of the corpus.

    All videos are probed before the first clip comes, since the split needs to know them all.
    """
    opened: list[_Opened] = []
    seen: dict[str, str] = {}
    names: set[str] = set()
    for source in found.sources:
        try:
            opened.append(_open(source, seen, names, config))
        except DataError as error:
            yield _aside(source.video, error)
    fixed = {o.source.name: o.source.split for o in opened if config.publisher_split and o.source.split}
    groups = [group_of(o.source, corpus) for o in opened if o.source.name not in fixed]
    held = held_out(groups, config)
    for one in opened:
        drawn: Split = "val" if group_of(one.source, corpus) in held else "train"
        yield from _clips_of(one, found, config, corpus, fixed.get(one.source.name) or drawn)


def _aside(item: str, error: DataError) -> Quarantined:
    reason = error.reason if isinstance(error, SkipItemError) else "unreadable"
    return Quarantined(item=item, reason=reason, detail=str(error))


def _open(source: Source, seen: dict[str, str], names: set[str], config: ScanConfig) -> _Opened:
    if not (is_text(source.video) and is_text(source.name)):
        raise SkipItemError("not_utf8", f"{source.video}: its name is not UTF-8; rename it")
    if source.name in names:
        raise SkipItemError("duplicate_name", f"{source.video}: another video is called '{source.name}', too")
    if not all(is_text(text) for text in (source.text, source.verb, source.noun, source.person)):
        raise SkipItemError("not_utf8", f"{source.video}: its text is not UTF-8")
    names.add(source.name)
    content = _unique(source, seen)
    duration = source.stretch[1] - source.stretch[0] if source.stretch else _length_s(source, config)
    return _Opened(source, content, duration)


def _unique(source: Source, seen: dict[str, str]) -> str:
    content = fingerprint(source.video)
    if source.episode:  # Equal pictures with other actions are another clip.
        content = files.digest([content, fingerprint(source.episode)])
    if source.stretch or source.rows:
        content = files.digest([content, source.stretch, source.rows])
    twin = seen.setdefault(content, source.video)
    if twin != source.video and files.sha256_file(twin) == files.sha256_file(source.video):
        raise SkipItemError("duplicate", f"{source.video}: the same content as {twin}")
    return content


def _clips_of(
    opened: _Opened, found: Found, config: ScanConfig, corpus: str, split: Split
) -> Iterator[Clip | Quarantined]:
    source, names = opened.source, set[str]()
    template = Clip(
        clip_id=f"{corpus}/{source.name}",
        corpus=corpus,
        video=source.video,
        start_s=0.0,
        end_s=1.0,
        source_hz=source.source_hz or config.source_hz,
        tier=config.tier or found.tier,
        embodiment=config.embodiment or found.embodiment,
        split=split,
        licence=config.licence,
        episode=source.episode,
        content=opened.content,
        person=source.person,
    )
    try:
        for window in _windows(opened, config):
            if isinstance(window, Quarantined):
                yield window
                continue
            try:
                yield from _parts(_placed(window, opened, config, names), template, config, source)
            except SkipItemError as error:
                yield _aside(f"{template.clip_id}#{window.name}", error)
    except DataError as error:
        yield _aside(source.video, error)


def _windows(opened: _Opened, config: ScanConfig) -> Iterable[Window | Quarantined]:
    """Returns the annotated windows; for a video without any the whole of it, less what is closed."""
    if opened.source.windows is not None:
        windows = iter(opened.source.windows(opened.duration_s))
        if (first := next(windows, None)) is not None:
            return itertools.chain([first], windows)
    if opened.duration_s < config.min_clip_s:
        detail = f"{opened.source.video}: {opened.duration_s:.3f} s, less than min_clip_s {config.min_clip_s}"
        raise SkipItemError("too_short", detail)
    return _whole(opened, config)


def _whole(opened: _Opened, config: ScanConfig) -> Iterator[Window]:
    source, at, left = opened.source, 0.0, False
    for start, stop in [*sorted(source.closed), (opened.duration_s, math.inf)]:
        end = min(start, opened.duration_s)
        # What is left between two closed stretches may be shorter than a clip; it is nobody's loss.
        if end - at >= config.min_clip_s:
            left = True
            yield Window(
                name="",
                start_s=at,
                end_s=end,
                text=source.text,
                text_origin=source.text_origin,
                verb=source.verb,
                noun=source.noun,
                extra=source.extra,
            )
        at = max(at, stop)
    if not left:
        raise SkipItemError("redacted", f"{source.video}: the publisher blanked out all of it")


def _placed(window: Window, opened: _Opened, config: ScanConfig, names: set[str]) -> Window:
    """Clips a window to its video; refuses, by name, one that lies elsewhere or nowhere."""
    start, end, where = window.start_s, window.end_s, f"{opened.source.video}: '{window.name}'"
    if window.name and window.name in names:
        raise SkipItemError("duplicate_id", f"{where} stands twice in the annotations")
    names.add(window.name)
    if not all(is_text(text) for text in (window.name, window.text, window.verb, window.noun)):
        raise SkipItemError("not_utf8", f"{where}: the text is not UTF-8")
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise SkipItemError("bad_time", f"{where}: {start}..{end} s is no stretch of time")
    if end <= 0 or start >= opened.duration_s:
        raise SkipItemError("outside_video", f"{where}: {start}..{end} s, but the video is {opened.duration_s:.3f} s")
    start, end = max(start, 0.0), min(end, opened.duration_s)
    if any(start < stop and begin < end for begin, stop in opened.source.closed):
        raise SkipItemError("redacted", f"{where}: {start:.3f}..{end:.3f} s touches what the publisher blanked out")
    if end - start < config.min_clip_s:
        raise SkipItemError("too_short", f"{where}: {end - start:.3f} s, less than min_clip_s {config.min_clip_s}")
    return replace(window, start_s=start, end_s=end)


def _parts(window: Window, template: Clip, config: ScanConfig, source: Source) -> Iterator[Clip]:
    length = window.end_s - window.start_s
    parts = max(1, -(-int(length * 1000) // int(config.clip_s * 1000)))
    edges = [window.start_s + length * i / parts for i in range(parts)] + [window.end_s]
    rows: list[int | None] = [None] * (parts + 1)
    if source.rows:  # Cut between frames: each part has rows of its own in the shared file.
        first, count = source.rows
        cuts = [round(count * i / parts) for i in range(parts + 1)]
        edges, rows = [window.start_s + length * cut / count for cut in cuts], [first + cut for cut in cuts]
    offset = source.stretch[0] if source.stretch else 0.0
    for (start, stop), (row, last) in zip(itertools.pairwise(edges), itertools.pairwise(rows), strict=True):
        part = window.name if parts == 1 else f"{window.name}@{start:.3f}"
        yield replace(
            template,
            clip_id=f"{template.clip_id}#{part if source.windows and window.name else f'{start:.3f}'}",
            start_s=offset + start,
            end_s=offset + stop,
            text=window.text,
            text_origin=window.text_origin if window.text else "",
            verb=window.verb,
            noun=window.noun,
            extra=files.canonical_json(window.extra) if window.extra else "",
            first_row=row,
            n_rows=None if row is None or last is None else last - row,
        )


def _length_s(source: Source, config: ScanConfig) -> float:
    return length_apart(source.video, source.source_hz or config.source_hz, config.limits)
