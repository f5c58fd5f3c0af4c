"""The options of packing.

What they do is left to `pyramid.shards.pack` and `pyramid.shards.samples`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyramid.types import NAME_PATTERN
from pyramid.video.backends.choice import Decoder
from pyramid.video.encode import Preset
from pyramid.video.probe import VideoLimits
from pyramid.video.regions import CropBorder, SplitGrid


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How clips become samples."""

    size_px: int = 128
    """Height and width of the packed frames; even."""
    rate_hz: float | None = None
    """Frames per second to keep of clips without actions; None keeps every frame."""
    fit: Literal["squash", "crop"] = "squash"
    """Squash keeps the whole picture and not its aspect; crop keeps the aspect and the centre."""
    crop_border: CropBorder = "off"
    """Auto leaves out black bars that are there in the whole video; off only notes them in the index."""
    split_grid: SplitGrid = "none"
    """2x2 makes a sample of each quadrant that is not black; auto does so if exactly one quadrant is black."""
    codec: Literal["h264", "jpeg", "both"] = "h264"
    """H264 in short GOPs; JPEG, each frame alone; both: the JPEGs are read and the video is for other tools."""
    jpeg_quality: int = 92
    """libjpeg's quality, 1 to 100."""
    gop: int = 12
    """Frames between key frames in the packed clips."""
    crf: int = 20
    """x264's rate factor; smaller is better and larger."""
    preset: Preset = "ultrafast"
    """x264's trade of time for size; ultrafast gives larger clips that are read faster, too."""
    frames_per_shard: int = 20_000
    """A shard is closed before the clip that would pass this."""
    prefix: str = "clips"
    """First part of the shards' names, [a-z0-9_]+."""
    min_frames: int = 2
    """Clips with fewer frames are set aside."""
    max_frames: int = 20_000
    """Clips with more are set aside."""
    drop: tuple[Literal["static", "cut", "damaged", "variable_rate"], ...] = ()
    """Oddities for which a clip is set aside; all others are only noted in the index."""
    decoder: Decoder = "auto"
    """Auto and pyav decode by PyAV, the fastest wherever it was measured; decord makes RGB of whole pictures before it
    scales them, and decodes by decord where that surely gives the same pixels, by PyAV elsewhere."""
    limits: VideoLimits = field(default_factory=VideoLimits)
    """What a video may ask for."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be packed."""
        if not NAME_PATTERN.fullmatch(self.prefix):
            raise ValueError(f"prefix '{self.prefix}': use a-z, 0-9 and _")
        if self.size_px < 16 or self.size_px % 2:
            raise ValueError(f"size_px must be even and at least 16, got {self.size_px}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must lie in 1 to 100, got {self.jpeg_quality}")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")
