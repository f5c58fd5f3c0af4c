"""What GR00T's clients say and expect to hear, in both dialects, turned into our observations and back.

Dialect ``n1_5``: flat keys ``video.<camera>``, ``state.<key>``, ``annotation.<key>``; the answer is a map of
``action.<key>``. Dialect ``n1_6`` (N1.6, N1.7): nested maps under ``observation``; the answer is ``[actions, note]``.
Facts are those of the public code of N1.5 and N1.7; bytes are `vla.deploy.protocol`'s, sockets the server's.

Shapes: B observations in a message, T time steps (1; of states as many as the policy takes), H W pixels, N chunk steps,
D dimensions of one key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import ConfigError, DataError, nearest
from vla.deploy.protocol import ModalityConfig
from vla.deploy.spec import DeploySpec
from vla.observation import resize_images

__all__ = ["Dialect", "Interface", "Query", "answer", "default_interface", "modality_config", "parse", "read_interface"]

Dialect = Literal["n1_5", "n1_6"]
Span = tuple[int, int]
LANGUAGE_KEYS = ("task", "annotation.human.task_description", "annotation.human.action.task_description")
"""Keys of the instruction that GR00T's own configurations use."""
MAX_BATCH = 8
"""Observations in one message."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """How a robot's names map onto the policy's views and vectors."""

    cameras: tuple[str, ...]
    """Names of the views, in the policy's order."""
    state: dict[str, Span]
    """Name -> first and last (exclusive) dimension of the state."""
    action: dict[str, Span]
    """Name -> first and last (exclusive) dimension of the action."""
    languages: tuple[str, ...]
    """Keys under which the instruction may stand."""
    size_px: int
    """Height and width that the policy takes."""
    horizon: int
    """Steps per chunk."""
    state_steps: tuple[int, ...] = (0,)
    """Steps after the present (0 or less) of each state of an observation, oldest first."""
    resize: bool = False
    """Whether views of another size are scaled (the aspect ratio is not kept); else they are refused."""


@dataclass(frozen=True)
class Query:
    """A request for actions, understood."""

    observations: list[dict[str, Any]]
    """One or more, as `vla.observation.read_observation` takes them."""
    dialect: Dialect
    """What the answer has to look like."""
    batched: bool
    """Whether the arrays had a leading B."""
    seed: int | None
    """Asked-for seed of the noise."""


def default_interface(spec: DeploySpec, *, resize: bool = False) -> Interface:
    """Names things without a modality.json: as the embodiment's declaration does; else camera_0, state, action."""
    e, declared = spec.embodiment, spec.embodiment.declaration
    cameras = declared.cameras if declared is not None and declared.cameras else []
    state = {"state": (0, e.state_dim)} if e.state_dim else {}
    action = {"action": (0, e.action_dim)}
    if declared is not None:
        state = {name: (part.start, part.end) for name, part in declared.state.items()}
        action = {name: (part.start, part.end) for name, part in declared.action.items()}
    return Interface(
        cameras=tuple(cameras[: spec.n_views]) or tuple(f"camera_{view}" for view in range(spec.n_views)),
        state=state,
        action=action,
        languages=LANGUAGE_KEYS,
        size_px=spec.image_size_px,
        horizon=e.horizon,
        state_steps=tuple(e.state_steps.tolist()),
        resize=resize,
    )


def read_interface(path: str, spec: DeploySpec, *, resize: bool = False) -> Interface:
    """Reads the names from a GR00T modality.json.

    Raises:
        ConfigError: the file does not fit the policy.
    """
    data = files.read_json(path)
    try:
        groups = {part: _groups(data.get(part, {})) for part in ("state", "action")}
        cameras, notes = tuple(data["video"]), tuple(f"annotation.{key}" for key in data.get("annotation", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"'{path}' is no modality.json ({type(error).__name__}: {error})") from error
    e = spec.embodiment
    for part, size in (("state", e.state_dim), ("action", e.action_dim)):
        covered = sorted(index for first, last in groups[part].values() for index in range(first, last))
        if covered != list(range(size)):
            raise ConfigError(f"'{path}': the {part} groups must cover the policy's {size} dimensions once each")
    if len(cameras) != spec.n_views:
        raise ConfigError(f"'{path}' names {len(cameras)} cameras, the policy takes {spec.n_views} views")
    return Interface(
        cameras=cameras,
        state=groups["state"],
        action=groups["action"],
        languages=(*dict.fromkeys((*notes, *LANGUAGE_KEYS)),),
        size_px=spec.image_size_px,
        horizon=e.horizon,
        state_steps=tuple(e.state_steps.tolist()),
        resize=resize,
    )


def _groups(part: Mapping[str, Any]) -> dict[str, Span]:
    return {str(name): (int(group["start"]), min(int(group["end"]), 4096)) for name, group in part.items()}


def parse(data: Any, interface: Interface) -> Query:
    """Understands the ``data`` of a request for actions.

    Raises:
        DataError: it is in neither dialect, or does not fit the interface; the key is named.
    """
    if not isinstance(data, Mapping):
        raise DataError(f"get_action needs a map with an observation, got {_kind(data)}")
    if "observation" in data:
        unknown = sorted(set(data) - {"observation", "options"})
        if unknown:
            raise DataError(f"get_action takes 'observation' and 'options', not {_names(unknown)}")
        parts, dialect, batched = _nested(data["observation"]), "n1_6", True
        seed = _seed(data.get("options"))
    else:
        parts, dialect, seed = _flat(data), "n1_5", None
        batched = _ranks(parts["state"], 3) or _ranks(parts["video"], 5)
    rows = _rows(parts, interface, batched)
    return Query(rows, dialect, batched, seed)  # type: ignore[arg-type]


def answer(query: Query, actions: Sequence[NDArray[np.float32]], interface: Interface, note: dict[str, Any]) -> Any:
    """Returns the reply to a query; ``actions``: float32 [N, all dimensions] for each of its observations."""
    stacked = np.stack(list(actions))
    split = {name: stacked[..., first:last] for name, (first, last) in interface.action.items()}
    if query.dialect == "n1_6":
        return [split, note]
    return {f"action.{name}": value if query.batched else value[0] for name, value in split.items()}


def modality_config(interface: Interface, dialect: Dialect) -> dict[str, ModalityConfig]:
    """Returns what clients learn of inputs and outputs."""
    now, steps = [0], list(range(interface.horizon))
    keys = {
        "video": (now, interface.cameras),
        "state": (list(interface.state_steps), tuple(interface.state)),
        "action": (steps, tuple(interface.action)),
        "language": (now, interface.languages[:1]),
    }
    found = {}
    for part, (delta, names) in keys.items():
        flat = dialect == "n1_5" and part != "language"
        content = {"delta_indices": delta, "modality_keys": [f"{part}.{name}" if flat else name for name in names]}
        found[part] = ModalityConfig(json.dumps(content) if dialect == "n1_5" else content)
    return found


def _nested(observation: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(observation, Mapping):
        raise DataError(f"the observation must be a map of video, state and language, got {_kind(observation)}")
    unknown = sorted(set(observation) - {"video", "state", "language"})
    if unknown:
        raise DataError(f"the observation has unknown parts {_names(unknown)}; known: video, state, language")
    parts = {}
    for part in ("video", "state", "language"):
        value = observation.get(part, {})
        if not isinstance(value, Mapping):
            raise DataError(f"the observation's {part} must be a map of names, got {_kind(value)}")
        parts[part] = dict(value)
    return parts


def _flat(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {"video": {}, "state": {}, "language": {}}
    for key, value in data.items():
        part, _, name = key.partition(".")
        if part in ("video", "state") and name:
            parts[part][name] = value
        elif part == "annotation" or key in LANGUAGE_KEYS:
            parts["language"][key] = value
        else:
            raise DataError(
                f"the observation has an unknown key '{key[:80]}'; keys begin with video., state. or annotation."
            )
    return parts


def _ranks(values: Mapping[str, Any], rank: int) -> bool:
    return any(isinstance(value, np.ndarray) and value.ndim == rank for value in values.values())


def _seed(options: Any) -> int | None:
    if options is None:
        return None
    if not isinstance(options, Mapping) or set(options) - {"seed"}:
        raise DataError("options may hold a 'seed' and nothing else")
    seed = options.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise DataError("the option 'seed' must be a whole number from 0 to 2^63 - 1")
    return seed


def _rows(parts: dict[str, dict[str, Any]], interface: Interface, batched: bool) -> list[dict[str, Any]]:
    _refuse_names("camera", parts["video"], interface.cameras)
    _refuse_names("state", parts["state"], tuple(interface.state))
    views = [_view(name, parts["video"][name], batched) for name in interface.cameras]
    n_states = len(interface.state_steps)
    states = {n: _state(n, parts["state"][n], (n_states, *span), batched) for n, span in interface.state.items()}
    sizes = {len(array) for array in (*views, *states.values())}
    if len(sizes) != 1 or not 1 <= (size := sizes.pop()) <= MAX_BATCH:
        raise DataError(f"all arrays need the same B of 1 to {MAX_BATCH}")
    texts = _texts(parts["language"], interface.languages, size)
    width = sum(last - first for first, last in interface.state.values())
    rows = []
    for row in range(size):
        state = np.zeros((n_states, width), np.float32)
        for name, (first, last) in interface.state.items():
            state[:, first:last] = states[name][row]
        state = state if n_states > 1 else state[0]
        images = _stack([view[row] for view in views], interface)
        rows.append({"images": images, "text": texts[row], **({"state": state} if width else {})})
    return rows


def _refuse_names(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in known:
        if name not in given:
            raise DataError(f"the observation lacks the {what} '{name}'; it has {_names(given) or 'none'}")
    for name in given:
        if name not in known:
            raise DataError(f"the observation has an unknown {what} '{name[:80]}'{nearest(name[:80], known)}")


def _view(name: str, value: Any, batched: bool) -> NDArray[np.uint8]:
    want = "uint8 [B, 1, H, W, 3]" if batched else "uint8 [1, H, W, 3]"
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        raise DataError(f"camera '{name}' must be {want} (RGB, 0 to 255), got {_kind(value)}")
    array = value if batched else value[None]
    if array.ndim != 5 or array.shape[1] != 1 or array.shape[4] != 3 or 0 in array.shape:
        raise DataError(f"camera '{name}' must be {want}, got {_kind(value)}")
    return array[:, 0]


def _state(name: str, value: Any, sizes: tuple[int, int, int], batched: bool) -> NDArray[Any]:
    steps, size = sizes[0], sizes[2] - sizes[1]
    want = f"float [B, {steps}, {size}]" if batched else f"float [{steps}, {size}]"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fi":
        raise DataError(f"state '{name}' must be {want} in physical units, got {_kind(value)}")
    array = value if batched else value[None]
    if array.ndim != 3 or array.shape[1:] != (steps, size):
        raise DataError(f"state '{name}' must be {want}, got {_kind(value)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not (finite := np.isfinite(array).all((0, 1))).all():
        raise DataError(f"state '{name}' is not finite in dimensions {np.flatnonzero(~finite).tolist()}")
    return array


def _texts(given: Mapping[str, Any], known: Sequence[str], size: int) -> list[str]:
    for name in given:
        if name not in known:
            raise DataError(f"the observation has an unknown language key '{name[:80]}'; known: {_names(known)}")
    if len(given) > 1:
        raise DataError(f"the observation has the instruction under {_names(given)}; give it once")
    value: Any = next(iter(given.values()), "")
    if isinstance(value, str):
        return [value] * size
    rows = (
        [row[0] if isinstance(row, list) and len(row) == 1 else row for row in value] if isinstance(value, list) else []
    )
    if not rows or not all(isinstance(row, str) for row in rows) or len(rows) not in (1, size):
        raise DataError(f"the instruction must be one text for each of {size} observations, as [[str]] or [str]")
    return rows * size if len(rows) == 1 else rows


def _stack(views: Sequence[NDArray[np.uint8]], interface: Interface) -> NDArray[np.uint8]:
    size = interface.size_px
    for name, view in zip(interface.cameras, views, strict=True):
        if view.shape != (size, size, 3) and not interface.resize:
            raise DataError(
                f"camera '{name}' has {view.shape[0]} x {view.shape[1]} px, the policy takes {size} x {size}; "
                "serve with --resize to have views scaled"
            )
    return np.concatenate([v[None] if v.shape == (size, size, 3) else resize_images(v[None], size) for v in views])


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _names(names: Any) -> str:
    return ", ".join(f"'{str(name)[:80]}'" for name in list(names)[:8])
