"""Neural trajectories: clips from video world models, asked for, taken in, judged and labelled.

Labels are made by `pyramid.labels`, the videos by the world models. What needs torch is imported from its own module.
"""

from __future__ import annotations

from neural_traj.ingest import IngestResult, ingest
from neural_traj.judge import JudgeResult, judge
from neural_traj.scores import ClipScores, score
from neural_traj.verdict import JudgeConfig

__all__ = ["ClipScores", "IngestResult", "JudgeConfig", "JudgeResult", "ingest", "judge", "score"]
