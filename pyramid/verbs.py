"""The table of verbs: what is typed, which function does it, whose fields are its options; all by name, imported later.

Whoever adds a verb adds a row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One row of the table."""

    name: str
    """What is typed, such as ``train lam``."""
    function: str
    """``module:function`` that does it."""
    help: str
    """One line."""
    config: str | None = None
    """``module:Class`` of its config, whose fields become dotted options."""


VERBS = (
    Verb("scan", "pyramid.corpora.scan:scan", "list the clips of a corpus", "pyramid.corpora.source:ScanConfig"),
    Verb(
        "pack", "pyramid.shards.pack:pack", "decode, resize, write webdataset shards", "pyramid.shards.pack:PackConfig"
    ),
    Verb("verify", "pyramid.shards.verify:verify", "check shards and labels, LeRobot data sets, manifests"),
    Verb("train lam", "lam.train:train_lam", "train a latent-action model", "lam.config:LAMConfig"),
    Verb("train idm", "idm.train:train_idm", "train an inverse dynamics model", "idm.config:IDMConfig"),
    Verb("train vla", "vla.train:train_vla", "train a policy on a mixture", "vla.config:VLAConfig"),
    Verb("evaluate lam", "lam.evaluate:evaluate_lam", "measure a latent-action model on held-out clips"),
    Verb("evaluate idm", "idm.evaluate:evaluate_idm", "measure an inverse dynamics model on held-out episodes"),
    Verb("evaluate vla", "vla.evaluate:evaluate_vla", "measure a policy's action error on held-out samples"),
    Verb(
        "label",
        "pyramid.labels.engine:label",
        "label every clip of a shard folder",
        "pyramid.labels.config:LabelConfig",
    ),
    Verb("redraw", "idm.redraw:redraw", "draw the robot over the hands of videos", "idm.redraw:RedrawConfig"),
    Verb("mix show", "pyramid.mixture.verbs:mix_show", "what a mixture holds, as a table and a drawing"),
    Verb("mix what-if", "pyramid.mixture.verbs:mix_what_if", "try other weights: repeats and exhaustion"),
    Verb("mix simulate", "pyramid.mixture.verbs:mix_simulate", "count what a mixture draws, without reading data"),
    Verb("mix audit", "pyramid.mixture.audit:mix_audit", "what a training run was really given, against the plan"),
    Verb(
        "mix tune",
        "pyramid.mixture.tune.verb:mix_tune",
        "choose a mixture's weights by small training runs",
        "pyramid.mixture.tune.config:TuneConfig",
    ),
    Verb(
        "dream prompts",
        "neural_traj.prompts:prompts",
        "first frames and instructions for a video world model",
        "neural_traj.prompts:PromptsConfig",
    ),
    Verb(
        "dream generate",
        "neural_traj.generate:generate",
        "have a video world model, or any program, make the videos",
        "neural_traj.generate:GenerateConfig",
    ),
    Verb(
        "dream ingest",
        "neural_traj.ingest:ingest",
        "take in clips that a video world model made",
        "pyramid.corpora.source:ScanConfig",
    ),
    Verb("dream judge", "neural_traj.judge:judge", "score generated clips", "neural_traj.judge:JudgeConfig"),
    Verb(
        "dream relabel",
        "neural_traj.relabel:relabel",
        "label accepted clips, latent and pseudo; LeRobot data sets of them",
        "neural_traj.relabel:RelabelConfig",
    ),
    Verb(
        "convert",
        "pyramid.conversion.convert:convert",
        "between LeRobot versions and webdataset shards",
        "pyramid.conversion.convert:ConvertConfig",
    ),
    Verb("export", "vla.deploy.export:export", "ONNX graphs, policy.json and a parity report of a policy"),
    Verb("serve", "vla.deploy.serve:serve", "answer robots' clients with an exported policy, over ZeroMQ"),
    Verb("bench", "vla.deploy.bench:bench", "time a deploy folder"),
    Verb("status", "pyramid.report.status:status", "what the jobs of a folder have done"),
    Verb("doctor", "pyramid.report.doctor:doctor", "what this machine can do, and how to mend what it cannot"),
    Verb("demo", "pyramid.tour.demo:demo", "the whole way once, small, offline", "pyramid.tour.config:DemoConfig"),
)
