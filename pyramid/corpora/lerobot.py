"""Robot episodes of a LeRobot v2.x or v3.0 data set, with their states and actions."""

from __future__ import annotations

import re

from pyramid.corpora.source import Found, ScanConfig, Source, relative
from pyramid.errors import ConfigError, nearest
from pyramid.jobs import Quarantined
from pyramid.lerobot.read_v3 import open_dataset


def find(root: str, config: ScanConfig) -> Found:
    """Lists the episodes of a data set, seen by one camera.

    Raises:
        ConfigError: the data set has no such camera; those it has are named.
    """
    dataset = open_dataset(root)
    if not dataset.cameras:
        raise ConfigError(f"'{root}': no camera of this data set has video files")
    camera = config.camera or dataset.cameras[0]
    if camera not in dataset.cameras:
        known = ", ".join(dataset.cameras)
        raise ConfigError(f"'{root}' has no camera '{camera}'{nearest(camera, dataset.cameras)}; it has {known}")
    sources, skipped = [], list(dataset.refused)
    for episode in dataset.episodes:
        if camera not in episode.videos:
            detail = f"{root}: episode {episode.index} has no video of camera '{camera}'"
            skipped.append(Quarantined(item=episode.data, reason="no_video", detail=detail))
            continue
        video, stretch = episode.videos[camera], episode.stretches.get(camera)
        if stretch is not None and not _fits(stretch, episode.length, dataset.fps):
            seconds = f"{stretch[1] - stretch[0]:.3f} s of video"
            detail = f"{root}: episode {episode.index} has {episode.length} rows at {dataset.fps:g} Hz and {seconds}"
            skipped.append(Quarantined(item=video, reason="length_mismatch", detail=detail))
            continue
        sources.append(
            Source(
                name=relative(video, root) if stretch is None else f"{camera}/episode_{episode.index:06d}",
                video=video,
                text=episode.task,
                text_origin="task" if episode.task else "",
                # Times are what finds an episode in a video that many share; else the container may lie.
                source_hz=dataset.fps if stretch is None else None,
                episode=episode.data,
                stretch=stretch,
                rows=episode.rows,
            )
        )
    body = re.sub(r"[^a-z0-9_]+", "_", dataset.robot_type.lower()).strip("_") or "robot"
    return Found(sources=sources, skipped=skipped, tier="top", embodiment=body)


def _fits(stretch: tuple[float, float], length: int, fps: float) -> bool:
    return abs((stretch[1] - stretch[0]) * fps - length) < 0.5
