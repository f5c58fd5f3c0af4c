"""Pictures of a scene without a screen or GPU, an order of magnitude faster than the environments draw themselves.

What is in the scene is left to `env`, how the body looks to `looks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid.errors import ConfigError
from pyramid.sim import backend

_NEAR = 1e-6
"""Length below which a direction has none."""


class Renderer:
    """Draws one model from one camera; use as a context manager, or call `close`.

    Speed comes from leaving out what a policy does not need: anti-aliasing, shadows, reflections, a large buffer.

    Args:
        model: MuJoCo's model; its drawing settings and the camera's field of view are changed in memory.
        size_px: height and width of the pictures.
        camera: name of a camera of the model.
        fovy_deg: the camera's vertical field of view; None keeps the model's.
        look_at: where the camera is turned to from where it stands, metres, x y z of the world; None keeps the
            model's. Data knows it once it is stepped or reset.
        oversample: draw so many times as large and average, which keeps small things whole; 1 .. 4.

    Raises:
        MissingDependencyError: there is no EGL to draw with.
    """

    def __init__(
        self,
        model: Any,
        *,
        size_px: int,
        camera: str = "corner4",
        fovy_deg: float | None = None,
        look_at: Sequence[float] | None = None,
        oversample: int = 1,
    ) -> None:
        mj = backend.mujoco()
        drawn_px = size_px * oversample
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = drawn_px
        if fovy_deg is not None:
            model.cam(camera).fovy[:] = fovy_deg
        if look_at is not None:
            model.cam(camera).quat[:] = _turned(model.cam(camera).pos, look_at)
        self._camera, self._oversample = camera, oversample
        self._off = (mj.mjtRndFlag.mjRND_SHADOW, mj.mjtRndFlag.mjRND_REFLECTION)
        with backend.explained_context():
            self._renderer = mj.Renderer(model, drawn_px, drawn_px)

    def frame(self, data: Any) -> NDArray[np.uint8]:
        """Draws the scene as it is in ``data``: uint8 [H, W, 3], RGB, upright as LeRobot shows Meta-World."""
        self._renderer.update_scene(data, camera=self._camera)
        for flag in self._off:  # update_scene turns them on again.
            self._renderer.scene.flags[flag] = 0
        # Meta-World's cameras hang upside down.
        picture: NDArray[np.uint8] = np.ascontiguousarray(self._renderer.render()[::-1, ::-1])
        return picture if self._oversample == 1 else np.array(Image.fromarray(picture).reduce(self._oversample))

    def close(self) -> None:
        """Frees the drawing context; left to the interpreter's end, EGL complains."""
        self._renderer.close()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _turned(place: NDArray[np.float64], target: Sequence[float]) -> NDArray[np.float64]:
    """Returns the attitude of a camera at ``place`` that sees ``target`` in its middle, upside down as all of them are.

    A quaternion, w x y z. MuJoCo's cameras look along their negative z axis, with y up.

    Raises:
        ConfigError: the target lies where the camera is, or straight above or below it.
    """
    back = np.asarray(place, np.float64) - np.asarray(target, np.float64)
    back /= max(float(np.linalg.norm(back)), _NEAR)
    right = np.cross([0.0, 0.0, -1.0], back)
    if np.linalg.norm(right) < _NEAR:
        raise ConfigError(f"look_at {list(target)} must not lie where the camera is ({list(place)}), above or below it")
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    found = np.zeros(4)
    backend.mujoco().mju_mat2Quat(found, axes.ravel())
    return found
