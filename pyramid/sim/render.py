"""Pictures of a scene without a screen or GPU, an order of magnitude faster than the environments draw themselves.

What is in the scene is left to `env`, how the body looks to `looks`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid.sim import backend


class Renderer:
    """Draws one model from one camera; use as a context manager, or call `close`.

    Speed comes from leaving out what a policy does not need: anti-aliasing, shadows, reflections, a large buffer.

    Args:
        model: MuJoCo's model; its drawing settings and the camera's field of view are changed in memory.
        size_px: height and width of the pictures.
        camera: name of a camera of the model.
        fovy_deg: the camera's vertical field of view; None keeps the model's.
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
        oversample: int = 1,
    ) -> None:
        mj = backend.mujoco()
        drawn_px = size_px * oversample
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = drawn_px
        if fovy_deg is not None:
            model.cam(camera).fovy[:] = fovy_deg
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
