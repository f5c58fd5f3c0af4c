"""Neural trajectories: clips from video world models, taken in and judged before anything is trained on them.

Labelling them is left to `pyramid.labels`, generating them to the world models themselves.
"""

from __future__ import annotations

from neural_traj.ingest import IngestResult, ingest
from neural_traj.judge import JudgeResult, judge
from neural_traj.scores import ClipScores, score
from neural_traj.verdict import JudgeConfig

__all__ = ["ClipScores", "IngestResult", "JudgeConfig", "JudgeResult", "ingest", "judge", "score"]
