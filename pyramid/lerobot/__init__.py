"""LeRobot data sets with GR00T's `modality.json`: v2.0, v2.1 and v3.0 are read, v2.1 is written.

Writing v3.0 is left to `pyramid.conversion`, what videos show to `pyramid.video`, what becomes a clip to
`pyramid.corpora`.
"""

from __future__ import annotations

from pyramid.lerobot.read import EpisodeArrays, LeRobotDataset, LeRobotEpisode, open_v2, read_episode, read_rows
from pyramid.lerobot.read_v3 import open_dataset
from pyramid.lerobot.schema import Layout, ModalityGroup
from pyramid.lerobot.write import EpisodeData, EpisodeWriter, WriteReport, write_v21

__all__ = [
    "EpisodeArrays",
    "EpisodeData",
    "EpisodeWriter",
    "Layout",
    "LeRobotDataset",
    "LeRobotEpisode",
    "ModalityGroup",
    "WriteReport",
    "open_dataset",
    "open_v2",
    "read_episode",
    "read_rows",
    "write_v21",
]
