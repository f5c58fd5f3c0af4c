"""What every corpus shares: how it is asked, the videos it finds and the windows in them, what it refuses.

How a corpus is laid out on disk is left to its own file, cutting videos into clips to `pyramid.corpora.cutting`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pyramid import files
from pyramid.jobs import Quarantined
from pyramid.types import Tier
from pyramid.video.probe import VIDEO_SUFFIXES, VideoLimits

_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How a corpus becomes clips."""

    corpus: str = ""
    """Name of the corpus in keys and tables, [a-z0-9_]+; empty takes the kind's."""
    embodiment: str = ""
    """Whose body is seen, [a-z0-9_]+; empty takes the kind's own."""
    tier: Literal["", "base", "middle", "top"] = ""
    """Level of the pyramid; empty takes the kind's own."""
    licence: str = ""
    """Licence of the source, kept with every clip."""
    clip_s: float = 20.0
    """Longest clip, seconds; longer videos and annotated stretches are cut into equal parts."""
    min_clip_s: float = 0.1
    """Shorter videos and stretches are skipped, seconds."""
    source_hz: float | None = None
    """True frame rate of files whose container lies."""
    val_share: float = 0.1
    """Share of persons held out, or of videos where the person is unknown; at least one where there are two."""
    publisher_split: bool = False
    """Whether the publisher's own split decides where there is one; it may show one person in train and in val."""
    seed: int = 0
    """Decides who is held out."""
    camera: str = ""
    """Camera of a robot data set; empty takes the first."""
    annotations: str = ""
    """Folder of a corpus's annotation files; empty looks for them below the corpus's own folder."""
    rendition: Literal["", "video_540ss", "full_scale", "clips"] = ""
    """Which of Ego4D's folders to take videos from; empty takes each video from the first that has it."""
    other_people: bool = False
    """Whether what others than the camera wearer do (Ego4D's #O) becomes clips, too."""
    limits: VideoLimits = field(default_factory=VideoLimits)
    """What a video may ask for."""

    def __post_init__(self) -> None:
        """Refuses lengths and shares that make no clips."""
        if not 0 <= self.min_clip_s < self.clip_s:
            raise ValueError(f"need 0 <= min_clip_s < clip_s, got {self.min_clip_s} and {self.clip_s}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be in [0, 1), got {self.val_share}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """One annotated stretch of a video; windows of one video may overlap."""

    name: str
    """Unique among the video's windows, and the publisher's own where there is one; part of the clip ids."""
    start_s: float
    """Start in the video's time, seconds, as annotated."""
    end_s: float
    """End (exclusive), seconds."""
    text: str = ""
    """Narration or label."""
    text_origin: str = ""
    """Where the text comes from."""
    verb: str = ""
    """Class of the action."""
    noun: str = ""
    """What is acted on."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, plain data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video of a corpus, before it is cut."""

    name: str
    """The publisher's name of the video, or its path relative to the corpus's root; part of the clip ids."""
    video: str
    """Path of the file."""
    text: str = ""
    """Instruction or caption."""
    text_origin: str = ""
    """Where the text comes from."""
    source_hz: float | None = None
    """True rate of a container that lies."""
    episode: str = ""
    """Parquet file with states and actions."""
    person: str = ""
    """Who acts; empty when unknown."""
    split: Literal["", "train", "val"] = ""
    """The publisher's split; empty when there is none."""
    verb: str = ""
    """Class of the action of a video without windows."""
    noun: str = ""
    """What is acted on in a video without windows."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the whole video."""
    closed: tuple[tuple[float, float], ...] = ()
    """Stretches that must not be used, (start, end) in seconds: nothing that touches one becomes a clip."""
    origin: str = ""
    """Name of the longer video that the file is a piece of; empty when it is whole. Never in two splits."""
    event: str = ""
    """Name of what several people filmed together; whoever is in it is in one split. Empty when the person, or the
    video, decides."""
    windows: Callable[[float], Iterable[Window | Quarantined]] | None = None
    """Reads the annotated stretches, and those that cannot be used, of a video of so many seconds; None, or none at
    all, takes the whole video."""
    stretch: tuple[float, float] | None = None
    """Start and end in a video that episodes share, seconds; None: the whole file."""
    rows: tuple[int, int] | None = None
    """First row and number of rows in an ``episode`` that others share; None: the whole file."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What looking through a corpus gave."""

    sources: list[Source]
    """Videos, in a stable order, no name twice."""
    skipped: list[Quarantined] = field(default_factory=list)
    """Files that were refused, with reasons."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Annotations that were left out on purpose, by reason; grows while windows are read."""
    tier: Tier = "base"
    """The kind's level of the pyramid."""
    embodiment: str = "human"
    """The kind's embodiment."""


def is_text(value: object) -> bool:
    """Tells whether a value is text that can be written as UTF-8."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def readable(item: Quarantined) -> Quarantined:
    """Returns an item whose words can be printed, whatever bytes its names are made of."""
    item_, detail = (text.encode(errors="backslashreplace").decode() for text in (item.item, item.detail))
    return Quarantined(item=item_, reason=item.reason, detail=detail)


def split_of(name: str) -> Literal["", "train", "val"]:
    """Returns the split that a publisher's name of one means here: what is not for training is held out."""
    lowered = name.strip().lower()
    if lowered.startswith("train"):
        return "train"
    return "val" if lowered.startswith(("val", "test")) else ""


def video_files(root: str) -> Iterator[tuple[str, str]]:
    """Yields ``(name, path)`` of the files below ``root`` that look like videos by their ending, in order of name."""
    for path in files.walk_files(root):
        if path.lower().endswith(VIDEO_SUFFIXES):
            yield relative(path, root), path


def relative(path: str, root: str) -> str:
    """Returns a path below ``root`` relative to it."""
    return path.removeprefix(str(root).rstrip("/") + "/").removeprefix("./")


def fingerprint(path: str) -> str:
    """Returns the sha256 of a file's size, first and last MiB: the content's name without reading terabytes."""
    size = files.size_bytes(path)
    head = files.read_range(path, 0, min(size, _PIECE))
    tail = files.read_range(path, max(size - _PIECE, len(head)), size - max(size - _PIECE, len(head)))
    return hashlib.sha256(str(size).encode() + b"\0" + head + tail).hexdigest()
