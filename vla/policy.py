"""The policy: backbone, action head and processor as one model that is saved, loaded and asked for actions.

Training it is `vla.train`, playing it without torch `vla.deploy`.

Shapes: B batch, V views, T chunk steps, D action dimensions, S state dimensions, L context tokens, C their width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from pyramid.actions import StateHistory
from pyramid.config import from_dict, provenance, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.nn.checkpoint import load_model_files, save_model
from pyramid.nn.hub import local_folder, push_folder
from pyramid.nn.realtime import RealTimeChunk
from pyramid.rng import seed_of
from pyramid.types import Embodiment
from vla.action_head import PreparedContext, build_action_head, check_histories
from vla.backbone import Backbone, build_backbone, restore_backbone
from vla.config import PolicyConfig
from vla.deploy.execution import Inpainting
from vla.objectives.check import BatchCheck
from vla.observation import initial_noise, padded_to, read_observation
from vla.processor import BodyStatistics, Processor
from vla.text import tokenizer_from_json, tokenizer_to_json

__all__ = ["KIND", "Policy", "build_policy"]

KIND = "vla"


def build_policy(config: PolicyConfig, bodies: Mapping[str, BodyStatistics], *, seed: int = 0) -> Policy:
    """Builds a policy with fresh weights (published ones in the backbone if the config says so).

    Args:
        config: sizes.
        bodies: the embodiments it is to know, with their normalisers.
        seed: decides the fresh weights, alone; torch's global generator is left as it was.

    Raises:
        ConfigError: an embodiment comes with another number of states than the head encodes.
    """
    check_histories(config.head, {name: body.embodiment for name, body in bodies.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "policy weights"))
        backbone, tokenizer = build_backbone(config.backbone)
        return Policy(config, bodies, backbone, tokenizer)


def _check_views(views: int, bodies: Mapping[str, BodyStatistics]) -> None:
    for name, body in bodies.items():
        spec = body.embodiment.declaration
        if spec is not None and spec.cameras and len(spec.cameras) < views:
            cameras = ", ".join(spec.cameras)
            raise ConfigError(
                f"the policy takes {views} views, embodiment '{name}' declares the cameras {cameras} only"
            )


class Policy(nn.Module):
    """Observations to action chunks in physical units, for every declared embodiment."""

    def __init__(
        self, config: PolicyConfig, bodies: Mapping[str, BodyStatistics], backbone: Backbone, tokenizer: Tokenizer
    ) -> None:
        super().__init__()
        self.config = config
        _check_views(config.backbone.n_views, bodies)
        self.processor = Processor(tokenizer, config.backbone.max_text_tokens, bodies)
        self.backbone = backbone
        self.head = build_action_head(config.head, backbone.width, self.networks, backbone.image_spans)
        size = config.backbone
        backbone.set_trainable(frozen=size.frozen, top_layers=size.tune_top_layers, vision=size.tune_vision)
        self.adapters: dict[str, Any] | None = None
        """Low-rank adapters in the backbone, as `vla.tuning.lora` put them there; None for none."""
        self.mixture: dict[str, Any] | None = None
        """The data it was trained on, as `pyramid.mixture` describes a mixture; None when unknown."""

    @property
    def networks(self) -> dict[str, Embodiment]:
        """The declared embodiments in the sizes that the action head sees, by name."""
        return {name: embodiment.network for name, embodiment in self.embodiments.items()}

    @property
    def embodiments(self) -> dict[str, Embodiment]:
        """The declared embodiments by name."""
        return {name: body.embodiment for name, body in self.processor.bodies.items()}

    def add_embodiment(self, body: BodyStatistics, *, like: str | None = None, seed: int = 0) -> None:
        """Gives one more embodiment encoders and a decoder of its own; the others keep theirs bit for bit.

        Args:
            body: the new embodiment with its normalisers.
            like: a declared embodiment of the same sizes whose weights are copied; None for fresh ones.
            seed: decides the fresh weights, alone.

        Raises:
            ConfigError: it is declared already, its chunks are too long, it has too few cameras or another
                number of states, or `like` has other sizes. The policy stays as it was.
        """
        name = body.embodiment.name
        _check_views(self.config.backbone.n_views, {name: body})
        check_histories(self.config.head, {name: body.embodiment})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "policy weights", name))
            self.head.add_embodiment(body.embodiment.network, like=like)
        self.processor.bodies[name] = body

    def encode(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Runs System 2.

        Args:
            images: uint8 [B, V, H, W, 3], RGB.
            texts: B instructions.

        Returns:
            Context float [B, L, C] and its mask bool [B, L].
        """
        ids, mask = (t.to(images.device) for t in self.processor.text(texts, trim=True))
        # Adapters train in a frozen backbone, too.
        trains = any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            context, context_mask = self.backbone(images, ids, mask)
        return context, context_mask

    def prepare(
        self, encoded: tuple[Tensor, Tensor], state: Tensor, state_known: Tensor | None, embodiment: str
    ) -> PreparedContext:
        """Prepares the head for an encoded observation; `state`: float32 [B, S] or [B, H, S] in physical units."""
        context, mask = encoded
        return self.head.prepare(context, mask, self.processor.state(state, embodiment), state_known, embodiment)

    def sample(
        self,
        prepared: PreparedContext,
        noise: Tensor,
        embodiment: str,
        state: Tensor | None = None,
        chunk: RealTimeChunk | None = None,
    ) -> Tensor:
        """Samples actions.

        Args:
            prepared: from `prepare`.
            noise: float32 [B, T, E], standard normal, in the sizes of `Embodiment.network`.
            embodiment: whose actions.
            state: float32 [B, S], physical units: what delta and relative actions begin from (of [B, H, S] the last);
                others do without.
            chunk: the chunk under way, encoded and normalised as for training; None for none. `act` makes it.

        Returns:
            Absolute actions float32 [B, T, D] in physical units.

        Raises:
            DataError: delta or relative actions without a state.
        """
        sampled = self.head.sample(prepared, noise, embodiment, chunk)
        return self.processor.body(embodiment).decode_action(sampled, state)

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Any],
        *,
        embodiment: str | None = None,
        seed: int = 0,
        tie: Inpainting | None = None,
    ) -> NDArray[np.float32]:
        """Returns the next actions.

        Args:
            observation: ``images`` uint8 [V, H, W, 3] RGB, ``text`` str, ``state`` float32 [S] in physical units;
                of an embodiment with a history [H, S], as `history` keeps them.
            embodiment: a declared embodiment; None for the only one.
            seed: decides the noise that the sample starts from.
            tie: the chunk under way that the new one is to continue, as `PolicyRuntime.chunk` takes it; None for none.

        Returns:
            float32 [T, D], physical units, one row per step of ``1 / rate_hz`` seconds.

        Raises:
            DataError: the observation or the chunk under way does not fit.
            ConfigError: the embodiment is not declared.
        """
        body = self.processor.body(embodiment).embodiment
        size = self.config.backbone
        states = {"state_dim": body.state_dim, "state_history": body.state_history}
        seen = read_observation(observation, n_views=size.n_views, size_px=size.image_size_px, **states)
        device = self.head.position.device
        encoded = self.encode(torch.from_numpy(seen.images)[None].to(device), [seen.text])
        state = torch.from_numpy(seen.state)[None].to(device)
        prepared = self.prepare(encoded, state, None, body.name)
        sizes = body.network
        noise = torch.from_numpy(initial_noise(seed, sizes.horizon, sizes.action_dim))[None].to(device)
        chunk = None
        if tie is not None:
            planned = torch.from_numpy(
                padded_to(tie.planned(body, self.processor.body(body.name).action, seen.present), sizes.action_dim)
            )
            frozen = min(tie.frozen, len(planned))
            chunk = RealTimeChunk(previous=planned[None].to(noise), frozen=frozen, rule=tie.rule, ramp_rate=tie.ramp)
        return self.sample(prepared, noise, body.name, state, chunk)[0].cpu().numpy()

    def history(self, embodiment: str | None = None) -> StateHistory:
        """Returns what keeps an embodiment's states in a control loop, for the observations of `act`; see there."""
        return self.processor.body(embodiment).embodiment.history()

    def check(self, *, require_text: bool = True) -> BatchCheck:
        """Returns what batches must be for this policy."""
        size = self.config.backbone
        return BatchCheck(self.embodiments, size.n_views, size.image_size_px, require_text)

    def description(self) -> dict[str, Any]:
        """Returns what a checkpoint needs besides config and weights, as plain data."""
        optional = {"adapters": self.adapters, "mixture": self.mixture}
        return {
            "bodies": {name: body.to_dict() for name, body in self.processor.bodies.items()},
            "backbone": self.backbone.spec.to_dict(),
            "tokenizer": json.loads(tokenizer_to_json(self.processor.tokenizer)),
            **{name: value for name, value in optional.items() if value is not None},
        }

    def save_pretrained(self, folder: str) -> None:
        """Writes a model folder that `from_pretrained` reads: README.md, model.safetensors, then config.json."""
        from vla.card import write_card

        write_card(self, folder)
        config = {"policy": to_dict(self.config)}
        source = provenance(config=config, inputs={})
        save_model(folder, kind=KIND, config=config, module=self, provenance=source, extra=self.description())

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads weights, config and card in one commit; returns the commit's address.

        Args:
            repo_id: ``owner/name``; made if missing.
            private: whether a repository that is made now is private.
            token: access token; None takes the one that ``hf auth login`` stored.
        """
        return push_folder(self.save_pretrained, repo_id, private=private, token=token, message="A policy")

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None) -> Policy:
        """Reads a model folder, or a model of the hub by its id; nothing in it is run.

        Args:
            name: folder or id (``owner/name``); a folder of that name wins, and a path that is none is never an id.
            revision: branch, tag or commit of the hub; pin one to get the same model tomorrow.

        Raises:
            DataError: the folder holds no policy, or its files do not belong together.
        """
        folder = local_folder(name, revision)
        description, weights = load_model_files(folder, KIND)
        try:
            policy = cls._from_description(description, folder)
            policy.mixture = description["extra"].get("mixture")
            if description["extra"].get("adapters"):
                from vla.tuning.config import LoraSpec
                from vla.tuning.lora import add_lora

                add_lora(policy, from_dict(LoraSpec, description["extra"]["adapters"]))
            policy.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise DataError(
                f"'{folder}': config.json describes no policy that this version knows ({problem})"
            ) from error
        except RuntimeError as error:
            raise DataError(f"'{folder}': the weights do not fit the config: {error}") from error
        return policy.eval()

    @classmethod
    def _from_description(cls, description: Mapping[str, Any], folder: str) -> Policy:
        extra = description["extra"]
        return cls(
            from_dict(PolicyConfig, description["config"]["policy"]),
            {name: BodyStatistics.from_dict(body) for name, body in extra["bodies"].items()},
            restore_backbone(extra["backbone"]),
            tokenizer_from_json(json.dumps(extra["tokenizer"]), f"the tokenizer in '{folder}'"),
        )
