"""Points learned from pictures alone: each frame is drawn again from where its points are, on a background of them all.

A network that has to draw a frame from a few points puts them on what moves (deep spatial autoencoders: Finn et al.
2016, arXiv 1509.06113; from Gaussians at the points: Jakab et al. 2018, arXiv 1806.07823). No action is needed, so
videos without any teach it. The background is one picture per view: cameras have to stand still, and where they do not,
points follow the camera. What maps points to actions is `idm.heads.LinearHead`.

Shapes: N frames, V views, P points, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idm.config import IDMConfig
from idm.data import Demonstration, WindowSampler
from idm.heads import LinearHead
from idm.model import InverseDynamicsModel
from idm.states import by_way_of, have_states, tell_actions, tell_states
from idm.vision import KeypointEyes, split_views
from idm.windows import window_frames
from pyramid.nn.keypoints import Keypoints
from pyramid.nn.transfer import on_device
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames
from pyramid.training import StepModule

__all__ = ["Drawer", "PictureSampler", "PointsModule", "fit_linear"]

_SPREAD = 0.12
"""Standard deviation of the Gaussian drawn at a point, half sides of the picture."""
_WIDTHS = (64, 48)
"""Channels of the drawing network."""
_BACKGROUND_FRAMES = 256
"""Frames whose median the background starts from."""
_LEAST_STD = 0.05
"""Standard deviation of a pixel (values of 0 to 1) below which what changes there counts no more."""
_SHOWN = 4
"""Views that TensorBoard shows."""
_AT_ONCE = 128


class PictureSampler:
    """Frames of clips, with or without actions, as a pure function of the step; every frame is equally likely.

    Args:
        clips: where they are.
        seed: seed of the whole order.
        batch_size: frames per step.
    """

    def __init__(self, clips: ClipFrames, *, seed: int, batch_size: int) -> None:
        self.clips, self.seed, self.batch_size = clips, seed, batch_size
        self._ends = np.cumsum([row["frames"] for row in clips.rows])

    def batch_at(self, step: int) -> Tensor:
        """Returns the pictures of training step ``step``, uint8 [N, 3, P, P]."""
        return self._frames(rng(self.seed, "picture", step).integers(self._ends[-1], size=self.batch_size))

    def some(self, most: int) -> Tensor:
        """Returns up to ``most`` frames of all clips, uint8 [M, 3, P, P]."""
        return self._frames(np.sort(rng(self.seed, "pictures").permutation(int(self._ends[-1]))[:most]))

    def _frames(self, numbers: NDArray[np.integer]) -> Tensor:
        """Returns frames that are counted through all clips."""
        clips = np.searchsorted(self._ends, numbers, side="right")
        firsts = self._ends[clips] - [self.clips.rows[clip]["frames"] for clip in clips]
        places = zip(clips.tolist(), (numbers - firsts).tolist(), strict=True)
        return torch.cat([self.clips.frames(clip, [frame]) for clip, frame in places])


class Drawer(nn.Module):
    """Draws pictures from their points: a background, and what differs from it.

    Args:
        n_points: P.
        side: S, a multiple of 2.
        views: V, each with a background of its own.
    """

    def __init__(self, n_points: int, side: int, views: int = 1) -> None:
        super().__init__()
        first, second = _WIDTHS
        self.background = nn.Parameter(torch.zeros(views, 3, side, side))
        """float [V, 3, S, S], values of 0 to 1."""
        self.layers = nn.Sequential(
            nn.Conv2d(n_points + 2, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, 12, 3, padding=1),
            nn.PixelShuffle(2),
        ).to(memory_format=torch.channels_last)
        line = torch.linspace(-1, 1, side // 2)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij")), persistent=False)
        self.grid: Tensor

    def forward(self, points: Tensor) -> Tensor:
        """Maps points, y and x in [-1, 1], float [N V, P, 2], to pictures float [N V, 3, S, S], 0 to 1 or so."""
        grid = self.grid.expand(len(points), -1, -1, -1)
        seen = torch.cat([self._marks(points), grid], dim=1).contiguous(memory_format=torch.channels_last)
        drawn: Tensor = self.layers(seen)
        return self.behind(len(points)) + drawn.float()

    def behind(self, count: int) -> Tensor:
        """Returns the background of each of ``count`` pictures, float [N V, 3, S, S], values of 0 to 1."""
        return self.background.repeat(count // len(self.background), 1, 1, 1)

    def _marks(self, points: Tensor) -> Tensor:
        """Returns a Gaussian at each point, float [N V, P, S / 2, S / 2]: one along y times one along x."""
        line = self.grid[0, :, 0]
        y, x = torch.exp(-((points[..., None] - line) ** 2) / (2 * _SPREAD**2)).unbind(2)
        return y[..., :, None] * x[..., None, :]


class PointsModule(StepModule):
    """The points of an inverse dynamics model with the loss that teaches them, for the trainer.

    Args:
        model: the model; only what sees is trained.
        config: sizes and training.
        finish: called with the model when training ends and before it is saved.
    """

    model: InverseDynamicsModel

    def __init__(
        self, model: InverseDynamicsModel, config: IDMConfig, finish: Callable[[InverseDynamicsModel], None]
    ) -> None:
        super().__init__(model, config.trainer)
        self.config, self.finish = config, finish
        size = config.model
        self.drawer = Drawer(size.vision.widths[-1], size.image_size_px, size.n_views)
        self.register_buffer("counts", torch.ones_like(self.drawer.background))
        self.counts: Tensor

    def start_from(self, pictures: PictureSampler) -> None:
        """Lets the background start from the median of some pictures, and takes weights of pixels from them."""
        views = split_views(pictures.some(_BACKGROUND_FRAMES), self.config.model).float() / 255
        self.drawer.background.data.copy_(views.median(dim=0).values)
        counts = 1 / (views.std(dim=0, unbiased=False) + _LEAST_STD)
        self.counts.copy_(counts / counts.mean())

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the squared error of what is drawn, as a share of what pictures differ from the background.

        A pixel counts less the more it changes: else the largest thing that moves would have all points.

        Args:
            batch: frames, uint8 [N, 3, P, P].
            generator: not used: nothing is drawn at random.
        """
        pictures, drawn = self._drawn(batch)
        counts = self.counts.repeat(len(batch), 1, 1, 1)
        change = pictures - self.drawer.behind(len(pictures)).detach()
        return self._mean(drawn - pictures, counts) / self._mean(change, counts).clamp(min=1e-6), {}

    def _drawn(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the views of a batch and what is drawn of them, float [N V, 3, S, S], values of 0 to 1 or so."""
        pictures = split_views(batch, self.config.model).flatten(0, 1).float() / 255
        seen = _points_of(self.model)
        points = seen.points(pictures - 0.5)
        with seen.precision(pictures.device):
            return pictures, self.drawer(points)

    def pictures(self, batch: Tensor) -> dict[str, Tensor]:
        """Returns ``drawn``: some views side by side, and below them what is drawn of them."""
        return {"drawn": torch.cat([torch.cat(list(rows[:_SHOWN]), dim=2) for rows in self._drawn(batch)], dim=1)}

    @staticmethod
    def _mean(error: Tensor, counts: Tensor) -> Tensor:
        return (counts * error.square()).mean()

    def on_fit_end(self) -> None:
        """Fits the head and calibrates; also when a resumed run had no step left to do."""
        self.model.eval()
        self.finish(self.model)


def _points_of(model: InverseDynamicsModel) -> Keypoints:
    assert isinstance(model.eyes, KeypointEyes)  # noqa: S101  # the configuration refuses others
    return model.eyes.seen


@torch.no_grad()
def fit_linear(model: InverseDynamicsModel, windows: WindowSampler) -> None:
    """Solves a model's linear head on all windows of all demonstrations, by way of states where it is to and can.

    Args:
        model: in eval mode, on any device.
        windows: the demonstrations' windows.
    """
    head = model.head
    assert isinstance(head, LinearHead)  # noqa: S101  # the caller asked for one
    for name in sorted({d.embodiment for d in windows.demonstrations}):
        own = [d for d in windows.demonstrations if d.embodiment == name]
        seen = [_looked(model, windows.clips.frames(d.clip, d.frames)) for d in own]
        if model.config.model.head.through == "states" and have_states(own):
            _fit_through_states(model, head, windows, own, seen)
            continue
        looked, present, action = [], [], []
        for d, of_frames in zip(own, seen, strict=True):
            told = windows.normalizers[name].normalize(d.action)
            for start, first, last in d.starts:
                steps, there = window_frames(start, first, last, windows.windows)
                looked.append(of_frames[steps])
                present.append(torch.tensor(there))
                action.append(torch.from_numpy(told[start : start + windows.windows.horizon]))
        tokens = model.eyes.join(torch.stack(looked), torch.stack(present))
        head.fit(name, tokens, torch.stack(present), torch.stack(action))


def _fit_through_states(
    model: InverseDynamicsModel,
    head: LinearHead,
    windows: WindowSampler,
    demonstrations: Sequence[Demonstration],
    seen: Sequence[Tensor],
) -> None:
    name, shape = demonstrations[0].embodiment, windows.windows
    points = [one.flatten(1).double().numpy() for one in seen]
    to_state = tell_states(points, demonstrations)
    told = [own @ to_state[0] + to_state[1] for own in points]
    normalize, gain = windows.normalizers[name].normalize, model.config.model.vision.difference_gain
    to_action = tell_actions(told, demonstrations, normalize, shape, gain)
    head.set(name, *by_way_of(to_state, to_action, shape))


def _looked(model: InverseDynamicsModel, frames: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([model.look(on_device(part, device)).cpu() for part in torch.split(frames, _AT_ONCE)])
