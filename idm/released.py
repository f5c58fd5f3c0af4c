"""A published folder of GR00T-Dreams' inverse dynamics model as a labeler's parts: network, windows, statistics.

Its weights are read by `idm.published`, what they were trained on by `idm.recipe`. Facts are those of the public
Apache-2.0 code (NVIDIA/GR00T-Dreams), none of which is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idm.config import HeadConfig, IDMConfig, ModelConfig, VisionConfig, WindowConfig
from idm.dreams import DreamsIDM
from idm.model import Confidence
from idm.published import read_checkpoint
from idm.recipe import Recipe, read_recipe
from idm.vision import split_views
from pyramid import files
from pyramid.errors import DataError
from pyramid.nn.published import slot_name
from pyramid.rng import torch_generator

__all__ = ["Released", "ReleasedIDM", "read_released"]

_VIEWS = {
    1: (),
    3: ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5)),
    4: ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)),
}
"""Where the views stand in one packed picture: whole, or a grid of two rows and columns whose last may be black."""


class Released(NamedTuple):
    """What a labeler is made of."""

    model: ReleasedIDM
    """The network."""
    config: IDMConfig
    """Windows and sizes, as far as ours have names for them."""
    embodiments: dict[str, dict[str, Any]]
    """What `idm.bodies.Body` reads."""
    weights_sha256: str
    """Digest of all weight files."""


class ReleasedIDM(nn.Module):
    """The published network behind the interface of ours: frames are looked at once, contexts are encoded once.

    Args:
        network: with its weights.
        config: see `Released`.
        recipe: what the frames and actions were when it was trained.
    """

    def __init__(self, network: DreamsIDM, config: IDMConfig, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.config, self.recipe = network, config, recipe
        self.known = nn.ModuleDict({f"for_{name}": self._unmeasured(name) for name in recipe.bodies})

    def _unmeasured(self, name: str) -> Confidence:
        """No release says how far off its labels are: a vote alone may be any training action."""
        body = self.recipe.bodies[name]
        known = Confidence(self.network.horizon, body["action_dim"])
        scale = torch.tensor(body["normaliser"]["scale"])
        spread = torch.tensor(body["action_std"], dtype=torch.float32) / torch.where(scale == 0, 1, scale)
        known.spread.copy_(torch.stack([torch.where(scale == 0, 0, spread), torch.zeros_like(spread)]))
        return known

    def confidence(self, embodiment: str) -> Confidence:
        """Returns what is known of the errors of an embodiment's labels."""
        return self.known[f"for_{embodiment}"]  # type: ignore[return-value]

    def look(self, pictures: Tensor) -> Tensor:
        """Maps packed pictures, uint8 [T, 3, P, P], to visual tokens without their places, float [T, V, N, W]."""
        views = split_views(pictures, self.config.model)
        pixels = self._prepared(views.flatten(0, 1).float()) / 127.5 - 1
        looked = self.network.tokens(pixels)
        return looked.view(-1, self.config.model.n_views, *looked.shape[1:])

    def _prepared(self, pixels: Tensor) -> Tensor:
        """Does what the release does to a picture where it does not train: middle crop, two resizings."""
        side, final = pixels.shape[-1], self.config.model.image_size_px
        kept = int(side * self.recipe.crop)
        edge = (side - kept) // 2
        pixels = pixels[..., edge : edge + kept, edge : edge + kept]
        for size in (self.recipe.resized_px, final):
            if pixels.shape[-1] != size:
                pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        return pixels

    def forward(self, looked: Tensor, present: Tensor, state: Tensor | None, embodiment: str) -> Tensor:
        """Predicts the actions of windows; states are no input, and all frames of its windows are always there.

        Args:
            looked: what `look` gave, float [B, K, V, N, W].
            present: float32 [B, K].
            state: not used.
            embodiment: a declared embodiment.

        Returns:
            float32 [1, B, H, D], normalised units.
        """
        frames, views = looked.shape[1:3]
        places = self.network.view.weight[: frames * views].view(frames, views, 1, -1)
        tokens = (looked + places).flatten(1, 3)
        # The release pads to a constant length, and attends to the zeros.
        tokens = nn.functional.pad(tokens, (0, 0, self.recipe.sequence - tokens.shape[1], 0))
        slot, dim = slot_name(self.recipe.slots[embodiment]), self.recipe.bodies[embodiment]["action_dim"]
        width = self.network.dims[slot]
        noise = torch.randn(self.network.horizon, width, generator=torch_generator(0, "idm-draw", 0)).to(tokens)
        acted = self.network.sample(self.network.encode(tokens), noise.expand(len(tokens), -1, -1), slot)
        return acted[None, ..., :dim].float()


def read_released(folder: str) -> Released:
    """Reads a published model folder: weights, ``config.json`` and ``experiment_cfg``.

    Raises:
        DataError: something is missing or does not fit; it is named.
    """
    network = read_checkpoint(folder)
    recipe = read_recipe(folder, network.horizon)
    for name, slot in recipe.slots.items():
        _check(folder, name, slot, recipe.bodies[name]["action_dim"], network)
    config = _config(folder, network, recipe)
    pictures = len(recipe.frames) * config.model.n_views
    tokens = pictures * (config.model.image_size_px // config.model.vision.patch_px // 4) ** 2
    if tokens > recipe.sequence or pictures > network.view.num_embeddings:
        raise DataError(
            f"'{folder}': {len(recipe.frames)} frames of {config.model.n_views} views are {tokens} tokens, the network "
            f"has room for {recipe.sequence} tokens of {network.view.num_embeddings} pictures"
        )
    weights = {
        name: files.sha256_file(files.join(folder, name))
        for name in sorted(files.listdir(folder))
        if name.endswith(".safetensors")
    }
    return Released(ReleasedIDM(network, config, recipe).eval(), config, recipe.bodies, files.digest(weights))


def _check(folder: str, name: str, slot: int, dim: int, network: DreamsIDM) -> None:
    if slot_name(slot) not in network.dims:
        raise DataError(f"'{folder}': '{name}' has slot {slot}, the weights have {len(network.dims)} slots")
    if dim > network.dims[slot_name(slot)]:
        raise DataError(
            f"'{folder}': the statistics of '{name}' are of {dim} action dimensions, the network gives at most "
            f"{network.dims[slot_name(slot)]}: they are those of another robot"
        )


def _config(folder: str, network: DreamsIDM, recipe: Recipe) -> IDMConfig:
    vision = network.vision.config
    if recipe.views not in _VIEWS:
        raise DataError(f"'{folder}' sees {recipe.views} views; known layouts of a packed picture have 1, 3 or 4")
    if min(recipe.frames) < 0 or max(recipe.frames) > network.horizon:
        raise DataError(
            f"'{folder}': frames {recipe.frames} reach past its {network.horizon} actions; the network cannot be told "
            "that a frame is missing at the ends of a clip"
        )
    try:
        return IDMConfig(
            windows=WindowConfig(
                horizon=network.horizon, frames=recipe.frames, votes="uniform", rate_hz=recipe.rate_hz
            ),
            model=ModelConfig(
                image_size_px=vision.image_size,
                views=_VIEWS[recipe.views],
                vision=VisionConfig(
                    kind="siglip",
                    width=vision.hidden_size,
                    layers=vision.num_hidden_layers,
                    heads=vision.num_attention_heads,
                    mlp_width=vision.intermediate_size,
                    patch_px=vision.patch_size,
                ),
                head=HeadConfig(kind="flow", steps=network.sample_steps, samples=1),
            ),
        )
    except ValueError as error:
        raise DataError(f"'{folder}': {error}") from error
