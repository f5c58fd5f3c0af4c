"""policy.json: what a deploy folder holds and how to ask it, as a checked value type; no torch.

Writing the graphs is `vla.deploy.export`, playing them `vla.deploy.runtime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, get_args, get_type_hints

from pyramid import files
from pyramid.actions.spec import ActionPart, BodySpec, StatePart
from pyramid.errors import ConfigError, DataError, PyramidError
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment

__all__ = [
    "FORMAT",
    "SPEC_FILE",
    "SYSTEM_1",
    "SYSTEM_1_CONTEXT",
    "SYSTEM_1_STEP",
    "SYSTEM_2",
    "DeploySpec",
    "FileRecord",
    "read_spec",
]

FORMAT = "latent-pyramid-policy/1"
SPEC_FILE = "policy.json"
SYSTEM_1 = "system1"
"""Name of the graph from context, state and noise to normalised actions."""
SYSTEM_2 = "system2"
"""Name of the graph from views and text to context."""
SYSTEM_1_CONTEXT = "system1_context"
"""Name of the optional graph from context to the keys and values that `SYSTEM_1_STEP` attends to."""
SYSTEM_1_STEP = "system1_step"
"""Name of the optional graph of one denoising step: noisy actions, time bucket and state to a velocity."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a deploy folder."""

    file: str
    """Name inside the folder, without any separator."""
    bytes: int
    """Size."""
    sha256: str
    """Digest, 64 hex digits."""


@dataclass(frozen=True, kw_only=True)
class DeploySpec:
    """Everything that a program needs to ask an exported policy for actions."""

    embodiment: Embodiment
    """Whose actions come out."""
    n_views: int
    """Camera views per observation."""
    image_size_px: int
    """Height and width of a view in pixels."""
    image_mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]; the graph applies it itself."""
    image_std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]; the graph applies it itself."""
    max_text_tokens: int
    """Length that texts are padded (id 0, right) or cut to."""
    sample_steps: int
    """Euler steps inside the System 1 graph."""
    state: Normalizer | None
    """From physical units; None when the embodiment has no state."""
    action: Normalizer
    """Back to physical units."""
    graphs: dict[str, FileRecord]
    """System 1 and System 2, and where they were exported, the two graphs of single denoising steps."""
    tokenizer: FileRecord
    """tokenizer.json."""
    opset: int
    """ONNX operator set of all graphs."""
    dynamic: tuple[str, ...] = ("batch",)
    """Sizes that the graphs leave open: `batch`, `text`; a text that is not open is padded to `max_text_tokens`."""
    precision: str = "fp32"
    """Bits of the graphs inside; inputs and outputs are float32 in any case."""
    held_out: dict[str, Any] | None = None
    """Errors in action units on held-out samples; None when they were not measured."""
    other_files: dict[str, FileRecord]
    """Everything else whose digest is kept: external weights, the parity report."""
    provenance: dict[str, Any]
    """Tool, versions, and digests of what it was made from."""

    def records(self) -> list[FileRecord]:
        """Returns every file whose digest is kept."""
        return [*self.graphs.values(), self.tokenizer, *self.other_files.values()]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of policy.json."""
        e, size = self.embodiment, self.image_size_px
        images = {"dtype": "uint8", "shape": [self.n_views, size, size, 3], "unit": "RGB, 0 to 255"}
        inputs: dict[str, Any] = {"images": images, "text": {"dtype": "str", "max_tokens": self.max_text_tokens}}
        if e.state_dim:
            inputs["state"] = {"dtype": "float32", "shape": list(e.state_shape), "unit": "physical"}
            if e.state_history > 1:
                inputs["state"]["steps"] = e.state_steps.tolist()
        return {
            "format": FORMAT,
            "embodiment": e.to_dict(),
            "inputs": inputs,
            "output": {
                "dtype": "float32",
                "shape": [e.horizon, e.action_dim],
                "unit": "physical",
                "rate_hz": e.rate_hz,
            },
            "image": {
                "resize": "bilinear, antialiased",
                "mean": list(self.image_mean),
                "std": list(self.image_std),
                "normalised_by": SYSTEM_2,
            },
            "text": {"tokenizer": vars(self.tokenizer), "padding": "right, id 0"},
            "normalizers": {"state": self.state.to_dict() if self.state else None, "action": self.action.to_dict()},
            "graphs": {name: vars(record) for name, record in self.graphs.items()},
            "other_files": {name: vars(record) for name, record in self.other_files.items()},
            "sample_steps": self.sample_steps,
            "opset": self.opset,
            "dynamic": list(self.dynamic),
            "precision": self.precision,
            "held_out": self.held_out,
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeploySpec:
        """Reads what `to_dict` wrote."""
        state = data["normalizers"]["state"]
        body = _embodiment(data["embodiment"])
        known = Normalizer.from_dict(state) if state is not None else None
        action = Normalizer.from_dict(data["normalizers"]["action"])
        body.check_statistics(known, action)
        return cls(
            embodiment=body,
            n_views=int(data["inputs"]["images"]["shape"][0]),
            image_size_px=int(data["inputs"]["images"]["shape"][1]),
            image_mean=tuple(data["image"]["mean"]),
            image_std=tuple(data["image"]["std"]),
            max_text_tokens=int(data["inputs"]["text"]["max_tokens"]),
            sample_steps=int(data["sample_steps"]),
            state=known,
            action=action,
            graphs={name: _record(data["graphs"][name]) for name in _graph_names(data["graphs"])},
            tokenizer=_record(data["text"]["tokenizer"]),
            opset=int(data["opset"]),
            dynamic=tuple(str(name) for name in data.get("dynamic", ["batch"])),
            precision=str(data.get("precision", "fp32")),
            held_out=data.get("held_out"),
            other_files={name: _record(record) for name, record in data["other_files"].items()},
            provenance=dict(data["provenance"]),
        )


def read_spec(folder: str) -> DeploySpec:
    """Reads policy.json of a deploy folder and checks that every file in it is the one that was exported.

    Raises:
        ConfigError: there is no policy in the folder.
        DataError: policy.json is of another format or damaged, or a file is missing or changed.
    """
    path = files.join(folder, SPEC_FILE)
    if not files.exists(path):
        raise ConfigError(
            f"'{folder}' holds no {SPEC_FILE}; export a checkpoint there: pyramid export CHECKPOINT --out"
        )
    data = files.read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise DataError(
            f"'{path}' has the format {found!r}, this version reads '{FORMAT}'; export the checkpoint again"
        )
    try:
        spec = DeploySpec.from_dict(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"'{path}' is damaged ({type(error).__name__}: {error}); export the checkpoint again"
        ) from error
    except PyramidError as error:
        raise DataError(f"'{path}' is damaged: {error}") from error
    for record in spec.records():
        _verify(folder, record)
    return spec


def _embodiment(data: Mapping[str, Any]) -> Embodiment:
    """Reads an embodiment without what reads configs, which a robot need not have."""
    declared = data.get("declaration")
    if declared is None:
        return Embodiment(**data)
    kinds: tuple[tuple[str, type[ActionPart] | type[StatePart]], ...] = (("action", ActionPart), ("state", StatePart))
    where = f"the declaration of embodiment '{data['name']}'"
    parts = {
        group: {name: _part(kind, part, f"{where}: {group} part '{name}'") for name, part in declared[group].items()}
        for group, kind in kinds
    }
    return Embodiment(**{**data, "declaration": BodySpec(**{**declared, **parts})})


def _part(kind: type[ActionPart] | type[StatePart], data: Mapping[str, Any], where: str) -> ActionPart | StatePart:
    hints = get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            raise DataError(f"{where} has an unknown key '{key}'")
        allowed, plain = get_args(hints[key]), (int, float) if hints[key] is float else hints[key]
        if value not in allowed if allowed else isinstance(value, bool) or not isinstance(value, plain):
            raise DataError(f"{where}: {key} cannot be {value!r}")
    return kind(**data)


def _graph_names(graphs: Mapping[str, Any]) -> list[str]:
    single_step = [SYSTEM_1_CONTEXT, SYSTEM_1_STEP]
    return [SYSTEM_1, SYSTEM_2, *(single_step if set(single_step) & set(graphs) else [])]


def _record(data: Mapping[str, Any]) -> FileRecord:
    record = FileRecord(str(data["file"]), int(data["bytes"]), str(data["sha256"]))
    if PurePosixPath(record.file).name != record.file or "\\" in record.file or record.file in ("", ".", ".."):
        raise ValueError(f"'{record.file}' is not a plain file name")
    return record


def _verify(folder: str, record: FileRecord) -> None:
    path = files.join(folder, record.file)
    if not files.exists(path) or files.sha256_file(path) != record.sha256:
        state = "changed" if files.exists(path) else "missing"
        raise DataError(f"'{path}' is {state} since the export; copy the whole folder again, or export again")
