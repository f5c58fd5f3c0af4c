"""How the frames of a window become tokens: a CNN over frames and differences, points, or a SigLIP tower on each frame.

What the tokens are used for is left to `idm.heads`. Seeing has two parts: `look` is done once per frame of a clip,
however many windows show it; `join` makes the tokens of a window of it.

Shapes: B windows, K frames, V views, S side, N tokens per picture, L tokens per window, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idm.config import ModelConfig, WindowConfig
from pyramid.errors import ConfigError, DataError
from pyramid.nn.keypoints import Keypoints

__all__ = ["CNNEyes", "KeypointEyes", "SiglipEyes", "SpaceToDepth", "build_eyes", "double_downsample", "split_views"]


def split_views(pictures: Tensor, config: ModelConfig) -> Tensor:
    """Cuts packed pictures, uint8 [..., 3, P, P], into views, uint8 [..., V, 3, S, S]."""
    side, lead = config.image_size_px, pictures.shape[:-3]
    if not config.views and pictures.shape[-1] == side:
        return pictures.unsqueeze(-4)
    flat, edge = pictures.reshape(-1, *pictures.shape[-3:]), pictures.shape[-1]
    cut = []
    for top, left, height, width in config.views or ((0.0, 0.0, 1.0, 1.0),):
        y, x = round(top * edge), round(left * edge)
        view = flat[..., y : y + round(height * edge), x : x + round(width * edge)]
        if view.shape[-2:] != (side, side):
            # Through float: a GPU resizes no bytes.
            resized = nn.functional.interpolate(view.float(), (side, side), mode="bilinear", antialias=True)
            view = resized.round().to(pictures.dtype)
        cut.append(view)
    return torch.stack(cut, dim=1).reshape(*lead, len(cut), 3, side, side)


class SpaceToDepth(nn.Module):
    """Joins each 2x2 square of a square grid of tokens into one token four times as wide."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps float [I, S * S, W], S even, to float [I, S * S / 4, 4 W]; columns before rows, as published."""
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1] or side % 2:
            raise DataError(f"{x.shape[1]} visual tokens are no square grid with an even side")
        grid = x.view(len(x), side // 2, 2, side // 2, 2, x.shape[2])
        return grid.permute(0, 3, 1, 2, 4, 5).reshape(len(x), side * side // 4, 4 * x.shape[2])


def double_downsample(width: int) -> nn.Sequential:
    """Returns the projector of GR00T-Dreams (Apache-2.0, its ``mlp_doubledownsample``): 16 times fewer tokens."""
    return nn.Sequential(*_downsample(width), *_downsample(width))


def _downsample(width: int) -> list[nn.Module]:
    # Five entries, so that the published numbers of the layers are ours.
    return [SpaceToDepth(), nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width)]


class CNNEyes(nn.Module):
    """CNN on the frame in the window's middle and the differences of all others to it.

    Args:
        model: sizes.
        windows: which frames there are.
        width: width of the tokens; None keeps the CNN's own, without positions, for a head that flattens them.
    """

    def __init__(self, model: ModelConfig, windows: WindowConfig, width: int | None) -> None:
        super().__init__()
        fine, middle, coarse = model.vision.widths
        self.anchor, self.gain = windows.anchor, model.vision.difference_gain
        self.count = (model.image_size_px // 8) ** 2
        self.body = nn.Sequential(
            _conv(3 * len(windows.frames) * model.n_views, fine, kernel=5, stride=2),
            _conv(fine, middle, stride=2),
            _conv(middle, middle),
            _conv(middle, coarse, stride=2),
            _conv(coarse, coarse),
        )
        self.width = width or coarse
        self.out = nn.Linear(coarse, width) if width else nn.Identity()
        self.position = nn.Parameter(torch.randn(self.count, width) * 0.02) if width else None
        self.to(memory_format=torch.channels_last)

    def look(self, views: Tensor) -> Tensor:
        """Leaves frames uint8 [T, V, 3, S, S] as they are: differences need them all."""
        return views

    def look_all(self, views: Tensor) -> Tensor:
        """Does `look` for the frames of windows, [B, K, V, 3, S, S]."""
        return views

    def join(self, looked: Tensor, present: Tensor) -> Tensor:
        """Maps frames, uint8 or float32 of 0 to 255 [B, K, V, 3, S, S], to tokens float [B, L, C].

        Args:
            looked: the frames; those that are not there are not used.
            present: float32 [B, K], 1 for a frame that is there, else 0; the anchor always is.
        """
        x = looked.float() / 255
        middle = x[:, self.anchor : self.anchor + 1]
        others = torch.cat([x[:, : self.anchor], x[:, self.anchor + 1 :]], dim=1)
        there = torch.cat([present[:, : self.anchor], present[:, self.anchor + 1 :]], dim=1)
        changes = self.gain * (others - middle) * there[:, :, None, None, None, None]
        seen = torch.cat([middle - 0.5, changes], dim=1).flatten(1, 3)
        grid = self.body(seen.contiguous(memory_format=torch.channels_last))
        tokens: Tensor = self.out(grid.flatten(2).transpose(1, 2))
        return tokens if self.position is None else tokens + self.position


class KeypointEyes(nn.Module):
    """Points of each frame by itself, and how far those of the others lie from those of the frame in the middle.

    Args:
        model: sizes.
        windows: which frames there are.
        width: width of the tokens, one per frame and view; None keeps the points, for a head that flattens them.
    """

    def __init__(self, model: ModelConfig, windows: WindowConfig, width: int | None) -> None:
        super().__init__()
        v, frames = model.vision, len(windows.frames)
        self.anchor, self.gain, self.views = windows.anchor, v.difference_gain, model.n_views
        side, fast = model.image_size_px, v.precision == "bfloat16"
        self.seen = Keypoints(v.widths, stride=4, side=side, fast=fast)
        self.count, own = frames * self.views, 2 * v.widths[-1]
        self.width = width or own
        self.out = nn.Linear(own, width) if width else nn.Identity()
        self.position = nn.Parameter(torch.randn(self.count, width) * 0.02) if width else None

    def look(self, views: Tensor) -> Tensor:
        """Maps frames, uint8 or float32 of 0 to 255 [T, V, 3, S, S], to points float [T, V, 2 P]."""
        points = self.seen.points(views.flatten(0, 1).float() / 255 - 0.5)
        return points.reshape(-1, self.views, 2 * points.shape[1])

    def look_all(self, views: Tensor) -> Tensor:
        """Does `look` for the frames of windows, [B, K, V, 3, S, S]."""
        looked = self.look(views.flatten(0, 1))
        return looked.view(*views.shape[:2], *looked.shape[1:])

    def join(self, looked: Tensor, present: Tensor) -> Tensor:
        """Maps points, float [B, K, V, 2 P], to tokens float [B, K V, C]; those of absent frames have not moved."""
        middle = looked[:, self.anchor : self.anchor + 1]
        moved = self.gain * (looked - middle) * present[:, :, None, None]
        place = torch.zeros_like(present[0])
        place[self.anchor] = 1
        tokens: Tensor = self.out((moved + middle * place[:, None, None]).flatten(1, 2))
        return tokens if self.position is None else tokens + self.position


class SiglipEyes(nn.Module):
    """SigLIP tower and double space-to-depth projector on each picture by itself, as in GR00T-Dreams.

    Args:
        model: sizes.
        windows: which frames there are.
        width: width of the tokens.
    """

    def __init__(self, model: ModelConfig, windows: WindowConfig, width: int) -> None:
        # Imported late: it takes seconds, and a CNN needs none of it.
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        v, self.width = model.vision, width
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=v.width,
                intermediate_size=v.mlp_width,
                num_hidden_layers=v.layers,
                num_attention_heads=v.heads,
                image_size=model.image_size_px,
                patch_size=v.patch_px,
                vision_use_head=False,
            )
        )
        self.tower.requires_grad_(v.tuned)
        self.out = nn.Linear(v.width, width)
        self.projector = double_downsample(width)
        self.views = model.n_views
        self.image = nn.Embedding(len(windows.frames) * self.views, width)
        self.count = len(windows.frames) * self.views * (model.image_size_px // v.patch_px // 4) ** 2

    def look(self, views: Tensor) -> Tensor:
        """Maps frames, uint8 or float32 of 0 to 255 [T, V, 3, S, S], to tokens float [T, V, N, C]."""
        pixels = views.flatten(0, 1).float() / 127.5 - 1
        tokens = self.projector(self.out(self.tower(pixels).last_hidden_state))
        return tokens.unflatten(0, (-1, self.views))  # type: ignore[no-any-return]

    def look_all(self, views: Tensor) -> Tensor:
        """Does `look` for the frames of windows, [B, K, V, 3, S, S]."""
        looked = self.look(views.flatten(0, 1))
        return looked.view(*views.shape[:2], *looked.shape[1:])

    def join(self, looked: Tensor, present: Tensor) -> Tensor:
        """Maps what `look` gave of each frame, float [B, K, V, N, C], to tokens float [B, L, C]; absent ones are 0."""
        k, v = looked.shape[1:3]
        tokens = looked + self.image.weight.view(k, v, 1, -1)
        return (tokens * present[:, :, None, None, None]).flatten(1, 3)

    def load_published(self, name: str) -> None:
        """Takes over the weights of a published tower, from a folder or the hub.

        Raises:
            ConfigError: no such model, or one of other sizes; what does not fit is named.
        """
        from transformers import SiglipVisionModel

        try:
            found = SiglipVisionModel.from_pretrained(name, trust_remote_code=False)
            own = self.tower.state_dict()
            theirs = {key: value for key, value in found.state_dict().items() if ".head." not in f".{key}"}
            odd = sorted(
                {key for key in {*own, *theirs} if key not in own or key not in theirs}
                | {key for key in {*own} & {*theirs} if own[key].shape != theirs[key].shape}
            )
        except (OSError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"model.vision.weights '{name}' cannot be loaded: {what}") from error
        if odd:
            raise ConfigError(f"model.vision.weights '{name}' does not fit model.vision: {', '.join(odd[:4])}")
        self.tower.load_state_dict(theirs)


Eyes = CNNEyes | KeypointEyes | SiglipEyes


def build_eyes(model: ModelConfig, windows: WindowConfig, width: int | None) -> Eyes:
    """Builds what sees; ``width`` None leaves the width of its tokens to it."""
    if model.vision.kind == "cnn":
        return CNNEyes(model, windows, width)
    if model.vision.kind == "keypoints":
        return KeypointEyes(model, windows, width)
    return SiglipEyes(model, windows, width or model.vision.width)


def _conv(d_in: int, d_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, padding=kernel // 2), nn.GroupNorm(8, d_out), nn.SiLU())
