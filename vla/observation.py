"""What a policy is asked with: the observation, checked and turned into arrays, without torch.

Normalising and running a network are left to `vla.policy` (torch) and `vla.deploy.runtime` (ONNX Runtime).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError
from pyramid.rng import rng

__all__ = ["Observation", "initial_noise", "padded_to", "present_state", "read_observation", "resize_images"]


@dataclass(frozen=True)
class Observation:
    """A checked observation."""

    images: NDArray[np.uint8]
    """uint8 [V, H, W, 3], RGB, at the policy's size."""
    text: str
    """Instruction; may be empty."""
    state: NDArray[np.float32]
    """float32 [S], or with a history [H, S], oldest first; physical units; S = 0 without proprioception."""

    @property
    def present(self) -> NDArray[np.float32]:
        """The present state float32 [S]: what delta and relative actions begin from."""
        return present_state(self.state)


def present_state(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the present one of states float32 [S] or [H, S]: the last."""
    return state[-1] if state.ndim == 2 else state


def padded_to(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Returns values [..., D] with zeros up to ``width`` dimensions."""
    missing = width - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)]) if missing else values


def read_observation(
    raw: Mapping[str, Any], *, n_views: int, size_px: int, state_dim: int, state_history: int = 1
) -> Observation:
    """Checks an observation and returns its arrays.

    Args:
        raw: ``images`` uint8 [V, H, W, 3] RGB (one view may be [H, W, 3]), ``text`` str (optional), ``state`` float [S]
            in physical units (not needed when S is 0); with a history, the last states, oldest first.
        n_views: V.
        size_px: H and W.
        state_dim: S.
        state_history: how many states there have to be; above 1 a single one is refused, since it is not known whether
            the robot stands still or the caller forgot where it came from.

    Raises:
        DataError: an unknown or missing key, a wrong type or shape, or a state that is not finite.
    """
    unknown = sorted(set(raw) - {"images", "text", "state"})
    if unknown:
        raise DataError(f"the observation has unknown keys {', '.join(unknown)}; known: images, text, state")
    text = raw.get("text", "")
    if not isinstance(text, str):
        raise DataError(f"the observation's text must be a str, got {type(text).__name__}")
    state = _state(raw.get("state"), state_dim, state_history)
    return Observation(_images(raw.get("images"), n_views, size_px), text, state)


def initial_noise(seed: int, horizon: int, action_dim: int) -> NDArray[np.float32]:
    """Returns the noise float32 [horizon, action_dim] that a sample starts from, the same on every machine."""
    return rng(seed, "policy noise").standard_normal((horizon, action_dim), dtype=np.float32)


def resize_images(images: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Scales views to the policy's size with an antialiased bilinear filter; the aspect ratio is not kept.

    Args:
        images: uint8 [V, H, W, 3].
        size_px: new height and width.

    Returns:
        uint8 [V, size_px, size_px, 3].
    """
    from PIL import Image

    size = (size_px, size_px)
    return np.stack([np.asarray(Image.fromarray(view).resize(size, Image.Resampling.BILINEAR)) for view in images])


def _images(value: Any, n_views: int, size_px: int) -> NDArray[np.uint8]:
    want = f"uint8 [{n_views}, {size_px}, {size_px}, 3]"
    if not isinstance(value, np.ndarray):
        got = "nothing" if value is None else type(value).__name__
        raise DataError(f"the observation's images must be a NumPy array {want}, got {got}")
    images = value[None] if value.ndim == 3 and n_views == 1 else value
    if images.dtype != np.uint8:
        raise DataError(
            f"the observation's images must be {want} (RGB, 0 to 255), got {value.dtype} {list(value.shape)}"
        )
    if images.shape != (n_views, size_px, size_px, 3):
        raise DataError(
            f"the observation's images must be {want}, got {list(value.shape)}; "
            f"vla.observation.resize_images scales views to {size_px} px"
        )
    return np.ascontiguousarray(images)


def _state(value: Any, state_dim: int, state_history: int) -> NDArray[np.float32]:
    shape = (state_dim,) if state_history == 1 else (state_history, state_dim)
    if value is None:
        if state_dim:
            raise DataError(
                f"the observation has no state; this embodiment needs float {list(shape)} in physical units"
            )
        return np.zeros(0, np.float32)
    state = np.asarray(value)
    if state.dtype.kind not in "fiu" or state.shape != shape:
        hint = ""
        if state.shape == (state_dim,) and state_history > 1:
            hint = f"; the policy takes the last {state_history} states, oldest first: its history() keeps them"
        raise DataError(
            f"the observation's state must be float {list(shape)}, got {state.dtype} {list(state.shape)}{hint}"
        )
    state = state.astype(np.float32)
    if not np.isfinite(state).all():
        bad = np.flatnonzero(~np.isfinite(np.atleast_2d(state)).all(0)).tolist()
        raise DataError(f"the observation's state is not finite in dimensions {bad}")
    return state
