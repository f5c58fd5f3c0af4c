"""Robot episodes of a LeRobot v2.x data set, with their states and actions."""

from __future__ import annotations

import re

from pyramid.corpora.source import Found, ScanConfig, Source, relative
from pyramid.errors import ConfigError, nearest
from pyramid.jobs import Quarantined
from pyramid.lerobot.read import open_v2


def find(root: str, config: ScanConfig) -> Found:
    """Lists the episodes of a data set, seen by one camera.

    Raises:
        ConfigError: the data set has no such camera; those it has are named.
    """
    dataset = open_v2(root)
    if not dataset.cameras:
        raise ConfigError(f"'{root}': no camera of this data set has video files")
    camera = config.camera or dataset.cameras[0]
    if camera not in dataset.cameras:
        known = ", ".join(dataset.cameras)
        raise ConfigError(f"'{root}' has no camera '{camera}'{nearest(camera, dataset.cameras)}; it has {known}")
    sources, skipped = [], []
    for episode in dataset.episodes:
        if camera not in episode.videos:
            detail = f"{root}: episode {episode.index} has no video of camera '{camera}'"
            skipped.append(Quarantined(item=episode.data, reason="no_video", detail=detail))
            continue
        sources.append(
            Source(
                name=relative(episode.videos[camera], root),
                video=episode.videos[camera],
                text=episode.task,
                text_origin="task" if episode.task else "",
                source_hz=dataset.fps,
                episode=episode.data,
            )
        )
    body = re.sub(r"[^a-z0-9_]+", "_", dataset.robot_type.lower()).strip("_") or "robot"
    return Found(sources=sources, skipped=skipped, tier="top", embodiment=body)
