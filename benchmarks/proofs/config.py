"""What is proved, with how much data and how often; the files are ``configs/proof/*.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from idm.config import IDMConfig
from lam.config import LAMConfig
from pyramid import files
from pyramid.config import resolve, to_dict
from vla.config import VLAConfig


@dataclass(frozen=True, kw_only=True)
class ProofConfig:
    """One proof: tasks, data, models, arms, and how often each cell is tried."""

    tasks: tuple[str, ...] = ("push-v3",)
    """Meta-World's names."""
    arms: tuple[str, ...] = ("behaviour_cloning", "idm_robot_look", "true_actions")
    """What is compared; see `proofs.arms`."""
    elsewhere: tuple[str, ...] = ()
    """What is compared on tasks after the first; empty: the same."""
    n_demos: int = 5
    """Demonstrations with actions of each subset; >= 1."""
    subsets: int = 4
    """Disjoint subsets of demonstrations; >= 1."""
    hand_subsets: int = 4
    """The same for arms of the hand look alone, whose effect is smaller; >= `subsets`."""
    n_videos: int = 100
    """Videos without actions in the robot's look."""
    n_hand: int = 100
    """Videos without actions in the hand's look."""
    n_starts: int = 60
    """Fresh starts that each policy is tried on."""
    max_steps: int = 200
    """Steps after which a try has failed."""
    execute: int = 8
    """Steps of each chunk that are done before the policy is asked again."""
    horizon: int = 8
    """Steps of a chunk."""
    size_px: int = 64
    """Height and width of pictures as they are drawn and packed; models make of them what they take."""
    fovy_deg: float = 40.0
    """Vertical field of view of the camera."""
    look_at: tuple[float, float, float] | None = None
    """Where the camera is turned to; metres."""
    oversample: int = 2
    """How many times as large pictures are drawn before they are averaged: puck and goal are three pixels wide."""
    demo_share: float = 0.25
    """Share of demonstrations in a batch of an arm with videos."""
    shift: float = 0.05
    """Largest shift of training pictures, share of the side."""
    future_s: float = 0.25
    """How far ahead FLARE foresees, seconds."""
    seed: int = 0
    """Decides demonstrations, videos, starts, weights. Settings are chosen on other seeds than those reported."""
    policy: str = "vla/keypoints"
    """The policy's preset."""
    updates: int = 2000
    """Updates of each policy; those of ``_long`` take twice as many."""
    idm: str = "idm/pictures"
    """Preset of the inverse dynamics model, trained on a subset of demonstrations; a linear head sees videos, too."""
    lam: str = "lam/tiny"
    """Preset of the latent-action model, trained on the videos of a look."""

    label_updates: int = 0
    """Updates of each label model; 0: those of its preset."""

    @property
    def taught(self) -> bool:
        """Whether policies that have the robot's videos begin with points: both models have to see by them."""
        linear = resolve(IDMConfig, self.idm).model.head.kind == "linear"
        return linear and self.policy_config().policy.backbone.kind == "keypoints"

    def arms_of(self, task: str) -> tuple[str, ...]:
        """Returns what is compared on a task."""
        return self.elsewhere if self.elsewhere and task != self.tasks[0] else self.arms

    def label_options(self) -> dict[str, int]:
        """Returns what the label models are trained with beyond their presets, as dotted options."""
        steps = {"trainer.max_steps": self.label_updates} if self.label_updates else {}
        return {"trainer.seed": self.seed, **steps}

    def policy_config(self) -> VLAConfig:
        """Returns the policy's config."""
        return resolve(VLAConfig, self.policy, **{"trainer.max_steps": self.updates, "trainer.seed": self.seed})

    def digest(self, models: Sequence[str] = ()) -> str:
        """Returns the digest of everything that decides a piece: not which others there are, nor models it has none of.

        Args:
            models: which of ``policy``, ``idm`` and ``lam`` it is made with.
        """
        presets = {"idm": IDMConfig, "lam": LAMConfig}
        alone = replace(self, tasks=(), arms=(), **{name: "" for name in presets if name not in models})
        made = [
            self.policy_config() if name == "policy" else resolve(presets[name], getattr(self, name)) for name in models
        ]
        told = {name: value for name, value in to_dict(alone).items() if name != "elsewhere"}
        return files.digest([told, *(to_dict(model) for model in made)])
