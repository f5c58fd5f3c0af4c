"""What training a latent-action model takes from elsewhere: frozen models, the first stage, statistics of the clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lam.config import LAMConfig
from lam.facts import ModelFacts
from lam.features import FrozenFeatures
from lam.model import LatentActionModel, build_model, load_frozen
from lam.run import load_model
from lam.signals import Lenders, PairSignals, action_statistics, state_statistics
from lam.text import TextEmbedder
from pyramid.config import to_dict
from pyramid.errors import DataError
from pyramid.shards.frames import ClipFrames

__all__ = ["Sources", "find_sources"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a training starts from besides its config."""

    facts: ModelFacts
    """Plain data that is saved with the model."""
    vision: FrozenFeatures | None = None
    """The pretrained vision model."""
    text: TextEmbedder | None = None
    """The pretrained text model."""
    stage1: dict[str, Tensor] | None = None
    """State of the first stage's quantiser."""
    digests: dict[str, str]
    """Digests of what decides the result and is not in the config."""

    def build(self, config: LAMConfig) -> LatentActionModel:
        """Builds the model with fresh weights, and its frozen parts with theirs."""
        model = build_model(config, self.facts)
        load_frozen(model, self.vision, self.stage1)
        return model

    def signals(self, clips: ClipFrames, config: LAMConfig) -> PairSignals:
        """Returns what fills the batches of these clips."""
        return PairSignals(clips, config, self.facts, self.text)


def find_sources(config: LAMConfig, clips: ClipFrames | None) -> Sources:
    """Loads the frozen models that a config names and takes the statistics that it asks for.

    Args:
        config: the model's config.
        clips: the training clips; None to build a model without data, and so without heads for what robots measure.

    Raises:
        ConfigError: a frozen model cannot be loaded.
        DataError: there is no first stage where the config says, or no actions or states to learn from.
    """
    vision = FrozenFeatures.pretrained(config.target, config.model.image_size_px) if _features(config) else None
    text = TextEmbedder(config.text) if config.text.text_model else None
    stage1, state, digest = _stage1(config) if config.stage1 else ({}, None, None)
    facts = ModelFacts(
        vision=vision.described if vision else {},
        text_dim=text.dim if text else 0,
        stage1=stage1,
        **(_measured(config, clips) if clips is not None else {}),
    )
    return Sources(
        facts=facts, vision=vision, text=text, stage1=state, digests={"stage1": digest} if digest is not None else {}
    )


def _features(config: LAMConfig) -> bool:
    return config.target.kind == "features"


def _stage1(config: LAMConfig) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    model, trained, digest = load_model(config.stage1)
    if model.quantizer.n_codes == 0:
        raise DataError(f"'{config.stage1}' has a continuous bottleneck; the first stage needs codes to freeze")
    described = {"quantizer": to_dict(trained.quantizer), "n_tokens": trained.model.n_tokens}
    return described, model.quantizer.state_dict(), digest


def _measured(config: LAMConfig, clips: ClipFrames) -> dict[str, Any]:
    objectives, seed = config.objectives, config.trainer.seed
    found: dict[str, Any] = {}
    if objectives.action_weight:
        found["actions"] = action_statistics(clips, Lenders(clips, config), config.pairs.gap_s)
    if objectives.proprio_weight:
        found["states"] = state_statistics(clips, seed)
    if objectives.body_critic or objectives.body_moments or objectives.body_cycle:
        bodies = found["bodies"] = sorted({str(row["embodiment"]) for row in clips.rows})
        if len(bodies) < 2:
            raise DataError(f"all training clips show '{bodies[0]}'; leave the weights of body_* at 0, or add others")
    for name, statistics in found.items():
        if not statistics:
            raise DataError(f"no training clip has {name}; leave the weight of that objective at 0, or add robot clips")
    return found
