"""The arms: what each policy of a cell learns from, as the tiers of a mixture; label runs are made by the verbs.

A cell is a task, a subset of demonstrations and an arm. All arms take the same updates of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proofs.config import ProofConfig
from proofs.corpus import BODY, Corpus

from idm.config import IDMConfig
from idm.train import train_idm
from lam.train import train_lam
from pyramid import files, label, pack, redraw, scan
from pyramid.config import resolve

Sources = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """Where a cell's inputs lie, and what they are made with."""

    out: str
    """Folder of the task."""
    corpus: Corpus
    """The task's data."""
    subset: int
    """Number of the subset of demonstrations."""
    config: ProofConfig
    """The proof."""

    @property
    def demos(self) -> str:
        """Shards of the demonstrations."""
        return self.corpus.demos[self.subset]


def _run(shards: str, labeler: str, model: str, name: str) -> str:
    """Labels shards with a model; returns the folder of the run."""
    out = files.join(shards, "labels", name)
    label(shards, labeler=labeler, model=model, out=out)
    return out


def _idm_config(cell: Cell) -> IDMConfig:
    return resolve(IDMConfig, cell.config.idm, **cell.config.label_options())


def _points(cell: Cell, look: str) -> str:
    """Returns a model that learned from the videos of a look where things are; it is the same for all subsets."""
    model, shards = files.join(cell.out, "models", f"points-{look}"), _shards(cell, look)
    train_idm(out=model, config=_idm_config(cell), videos=shards)
    return model


def _idm_model(cell: Cell) -> str:
    model, config = files.join(cell.out, "models", f"idm-{cell.subset}"), _idm_config(cell)
    # One that learns from pictures has points that the videos taught.
    points = _points(cell, "robot") if config.model.head.kind == "linear" else ""
    train_idm(cell.demos, out=model, config=config, points=points)
    return model


def _idm(cell: Cell) -> str:
    return _run(cell.corpus.videos, "idm", _idm_model(cell), f"idm-{cell.subset}")


def _redrawn(cell: Cell) -> dict[str, str]:
    """Draws the robot over the hands, and labels what was drawn; returns the shards and the labels."""
    name, corpus, model = f"redrawn-{cell.subset}", cell.corpus, _idm_model(cell)
    drawn, clips, shards = (files.join(cell.out, kind, name) for kind in ("videos-drawn", "clips", "shards"))
    redraw(
        corpus.hand,
        demos=cell.demos,
        robot=model,
        points=_points(cell, "hand"),
        robot_videos=corpus.videos,
        out=drawn,
        seed=cell.config.seed,
    )
    scan("folder", drawn, out=f"{clips}.parquet", val_share=0.0, embodiment=BODY)
    pack(f"{clips}.parquet", out=shards, size_px=cell.config.size_px)
    return {"shards": shards, "labels": _run(shards, "idm", model, "idm")}


def _redrawn_source(cell: Cell) -> Sources:
    return {"redrawn": {**_redrawn(cell), "use": "pseudo", "embodiment": BODY}}


def _shards(cell: Cell, look: str) -> str:
    return {"robot": cell.corpus.videos, "hand": cell.corpus.hand}[look]


def _lam(cell: Cell, look: str) -> str:
    model, shards = files.join(cell.out, "models", f"lam-{look}"), _shards(cell, look)
    train_lam([shards], out=model, config=cell.config.lam, **cell.config.label_options())
    return _run(shards, "lam", model, f"lam-{look}")


FEW_LABELS = {
    "objectives.action_weight": 1.0,
    "objectives.action_share": 1.0,
    "quantizer.kind": "none",
    "pairs.gap_s": 0.1,
}
"""How a latent-action model learns from videos and a few actions at once (LAOM, arXiv 2502.00379): its latents are read
by a linear map, so that nothing is gained by codes, and actions over a short gap are what a policy can repeat."""


def _lam_few(cell: Cell) -> str:
    model, shards = files.join(cell.out, "models", f"lam-few-{cell.subset}"), cell.corpus.videos
    options = {**FEW_LABELS, **cell.config.label_options()}
    train_lam([cell.demos, shards], out=model, config=cell.config.lam, **options)
    return _run(shards, "lam", model, f"lam-few-{cell.subset}")


def _demonstrations(cell: Cell, *, state: bool) -> Sources:
    return {"demos": {"shards": cell.demos, "use": "action", "state": state}}


def _pseudo(labels: Callable[[Cell], str]) -> Callable[[Cell], Sources]:
    def sources(cell: Cell) -> Sources:
        shards = cell.corpus.videos
        return {"videos": {"shards": shards, "use": "pseudo", "labels": labels(cell), "embodiment": BODY}}

    return sources


def _true(cell: Cell) -> Sources:
    return {"videos": {"shards": cell.corpus.true, "use": "action", "state": False}}


def _latent(look: str) -> Callable[[Cell], Sources]:
    def sources(cell: Cell) -> Sources:
        return {f"latent_{look}": {"shards": _shards(cell, look), "use": "latent", "labels": _lam(cell, look)}}

    return sources


def _videos(cell: Cell) -> Sources:
    shards = [cell.corpus.videos, cell.corpus.hand]
    return {f"seen_{i}": {"shards": folder, "use": "video"} for i, folder in enumerate(shards)}


ROBOT_PART = 2.0
"""How many samples of the robot's own videos the full pyramid takes for one of hands that the robot is drawn over."""


def _full(cell: Cell) -> Sources:
    own = {name: {**source, "weight": ROBOT_PART} for name, source in _pseudo(_idm)(cell).items()}
    return {**own, **_redrawn_source(cell)}


ARMS: Mapping[str, Callable[[Cell], Sources] | None] = {
    "behaviour_cloning": None,
    "behaviour_cloning_long": None,
    "behaviour_cloning_state": None,
    "points_robot_look": None,
    "idm_robot_look": _pseudo(_idm),
    "lam_decoded": _pseudo(_lam_few),
    "latent_robot_look": _latent("robot"),
    "latent_hand_look": _latent("hand"),
    "redrawn_hand_look": _redrawn_source,
    "flare": _videos,
    "full_pyramid": _full,
    "true_actions": _true,
}
"""What each arm adds to the demonstrations; None adds nothing."""
LABELS: Mapping[str, tuple[str, ...]] = {
    "points_robot_look": ("points-robot",),
    "true_actions": ("points-robot",),
    "flare": ("points-robot",),
    "idm_robot_look": ("points-robot", "idm"),
    "lam_decoded": ("points-robot", "lam-few"),
    "latent_robot_look": ("points-robot", "lam-robot"),
    "latent_hand_look": ("lam-hand",),
    "redrawn_hand_look": ("points-robot", "points-hand", "idm", "redrawn"),
    "full_pyramid": ("points-robot", "points-hand", "idm", "redrawn"),
}
"""The label models of arms: ``lam-LOOK`` and ``points-LOOK`` of all subsets, the others of each."""
OF_DEMONSTRATIONS = ("idm", "lam-few", "redrawn")
"""Label models that learn from demonstrations: one for each subset. They tell actions."""
STAGES: Sequence[tuple[str, ...]] = (
    ("points-robot", "points-hand", "lam-robot", "lam-hand"),
    ("idm", "lam-few"),
    ("redrawn",),
)
"""Label models in the order in which they are made: some are made of others, which have to be there."""
OF_ROBOT = ("idm", "lam-few", "lam-robot")
"""Label models of the robot's videos, whose true actions are known."""
WITH_STATE = "behaviour_cloning_state"
"""Cloning that is told the robot's state. All others see pictures alone: on videos nobody knows it."""
HAND_ALONE = ("behaviour_cloning", "latent_hand_look", "redrawn_hand_look")
"""Arms that are tried on all of ``hand_subsets`` where one after the first is."""
OF_HANDS = ("latent_hand_look", "redrawn_hand_look", "flare", "full_pyramid")
"""Arms that learn from hand videos."""


def models_of(piece: str) -> list[str]:
    """Returns the models that an arm, a label model or a part of the data is made with, as `ProofConfig` names them."""
    kinds = {kind.partition("-")[0] for kind in LABELS.get(piece, (piece,))}
    labels = {"idm" if kind in ("points", "redrawn") else kind for kind in kinds} & {"idm", "lam"}
    return sorted(labels | ({"policy"} if piece in ARMS else set()))


def make_labels(kind: str, cell: Cell) -> None:
    """Trains a label model and labels what is learned from it: before the cells, several of which need the same."""
    if kind == "idm":
        _idm(cell)
    elif kind == "lam-few":
        _lam_few(cell)
    elif kind == "redrawn":
        _redrawn(cell)
    else:
        what, _, look = kind.partition("-")
        {"points": _points, "lam": _lam}[what](cell, look)


def mixture_of(arm: str, cell: Cell) -> dict[str, Any]:
    """Returns an arm's mixture, as its file has it; makes the labels that it names."""
    config, more = cell.config, ARMS[arm]
    tiers: dict[str, Any] = {
        "top": {"weight": config.demo_share, "sources": _demonstrations(cell, state=arm == WITH_STATE)}
    }
    if more is not None:
        tiers["base"] = {"weight": 1 - config.demo_share, "sources": more(cell)}
    return {
        "horizon": config.horizon,
        "seed": config.seed,
        "shuffle_frames": 16_384,
        "augment": {"shift": config.shift},
        "tiers": tiers,
        **({"future_s": config.future_s} if arm == "flare" else {}),
    }


def options_of(arm: str, cell: Cell) -> dict[str, Any]:
    """Returns what an arm's training does otherwise than the others, as dotted options.

    A policy that has the robot's videos begins with the points that they taught.
    """
    taught = "points-robot" in LABELS.get(arm, ()) and cell.config.taught
    begun = {"policy.backbone.pretrained": _points(cell, "robot")} if taught else {}
    return {**begun, **_more_options(arm, cell.config)}


def _more_options(arm: str, config: ProofConfig) -> dict[str, Any]:
    if arm == "behaviour_cloning_long":
        return {"trainer.max_steps": 2 * config.updates}
    if arm == "flare":
        # Points of fresh convolutions mean nothing yet; a learned target knows of actions.
        target = {"objectives.flare.target": "qformer", "objectives.flare.qformer_width": 64}
        return {"objectives.flare.weight": 0.2, "objectives.flare.layer": 1, "policy.head.future_tokens": 4, **target}
    return {}
