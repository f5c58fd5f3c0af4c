"""latent-pyramid's data side: from a video file to a training batch; knows no model.

Every verb of the command ``pyramid`` is a function here, imported when it is first asked for, so that
``import pyramid`` stays light enough for a robot.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
_DISTRIBUTION = "latent-pyramid"

if Path(__file__).with_name("asset.py").exists():
    raise ImportError(
        f"Two projects share the folder {Path(__file__).parent}: {_DISTRIBUTION} and the web framework 'pyramid', "
        "whose import name is the same. They cannot live in one environment. Make a new one "
        f"(python -m venv NEW) and install only {_DISTRIBUTION} there."
    )

if TYPE_CHECKING:
    from idm.evaluate import evaluate_idm
    from idm.redraw import redraw
    from idm.train import train_idm
    from lam.evaluate import evaluate_lam
    from lam.train import train_lam
    from neural_traj.generate import generate
    from neural_traj.ingest import ingest
    from neural_traj.judge import judge
    from neural_traj.prompts import prompts
    from neural_traj.relabel import relabel
    from pyramid.conversion.convert import convert
    from pyramid.corpora.scan import scan
    from pyramid.labels.engine import label
    from pyramid.mixture.audit import mix_audit
    from pyramid.mixture.tune.verb import mix_tune
    from pyramid.mixture.verbs import mix_show, mix_simulate, mix_what_if
    from pyramid.report.doctor import doctor
    from pyramid.report.status import status
    from pyramid.shards.pack import pack
    from pyramid.shards.verify import verify
    from pyramid.tour.demo import demo
    from vla.deploy.bench import bench
    from vla.deploy.export import export
    from vla.deploy.serve import serve
    from vla.evaluate import evaluate_vla
    from vla.train import train_vla

_FUNCTIONS = {
    "scan": "pyramid.corpora.scan",
    "pack": "pyramid.shards.pack",
    "verify": "pyramid.shards.verify",
    "train_lam": "lam.train",
    "train_idm": "idm.train",
    "train_vla": "vla.train",
    "evaluate_lam": "lam.evaluate",
    "evaluate_idm": "idm.evaluate",
    "evaluate_vla": "vla.evaluate",
    "label": "pyramid.labels.engine",
    "redraw": "idm.redraw",
    "mix_audit": "pyramid.mixture.audit",
    "mix_show": "pyramid.mixture.verbs",
    "mix_what_if": "pyramid.mixture.verbs",
    "mix_simulate": "pyramid.mixture.verbs",
    "mix_tune": "pyramid.mixture.tune.verb",
    "prompts": "neural_traj.prompts",
    "generate": "neural_traj.generate",
    "ingest": "neural_traj.ingest",
    "judge": "neural_traj.judge",
    "relabel": "neural_traj.relabel",
    "convert": "pyramid.conversion.convert",
    "export": "vla.deploy.export",
    "serve": "vla.deploy.serve",
    "bench": "vla.deploy.bench",
    "status": "pyramid.report.status",
    "doctor": "pyramid.report.doctor",
    "demo": "pyramid.tour.demo",
}

__all__ = [
    "bench",
    "convert",
    "demo",
    "doctor",
    "evaluate_idm",
    "evaluate_lam",
    "evaluate_vla",
    "export",
    "generate",
    "ingest",
    "judge",
    "label",
    "mix_audit",
    "mix_show",
    "mix_simulate",
    "mix_tune",
    "mix_what_if",
    "pack",
    "prompts",
    "redraw",
    "relabel",
    "scan",
    "serve",
    "status",
    "train_idm",
    "train_lam",
    "train_vla",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a verb's function when it is first named."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'pyramid' has no attribute '{name}'")
