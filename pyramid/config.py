"""Configs: frozen dataclasses filled from presets, YAML, mappings and dotted options, strictly; and provenance.

What a field means is left to the dataclass that declares it.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

import pyramid
from pyramid import files
from pyramid.errors import ConfigError, UnsafeInputError, nearest

T = TypeVar("T")
MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 50_000
_ROOT = "config"


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 core scalars, no duplicate keys, a bounded number of nodes (aliases counted as often as they stand)."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        if self.nodes > MAX_YAML_NODES:
            raise UnsafeInputError(f"more than {MAX_YAML_NODES} values in one YAML document")
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases (*name) are not read here; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a plain name")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key '{key}' stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Quotes every string that the rules of YAML 1.1 or those of 1.2 would take for something else."""


def _core_schema(loader: type[yaml.SafeLoader | yaml.SafeDumper]) -> None:
    """Adds YAML 1.2's scalar rules; by those of 1.1 ``1e-4`` is a string, ``on`` is true and ``3:20`` is 200."""
    rules = {
        "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
        "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
        "float": (
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
        "null": (r"~|null|Null|NULL|", "~nN\0"),
    }
    for kind, (pattern, first) in rules.items():
        letters: list[Any] = list(first.replace("\0", "")) + ([""] if "\0" in first else [])
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), letters)


def _integer(text: str) -> int:
    return int(text, 16 if "x" in text else 10)


# (A class attribute shared with the parent: replaced, never mutated.)
_StrictLoader.yaml_implicit_resolvers = {}
_core_schema(_StrictLoader)
_core_schema(_StrictDumper)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _integer(str(node.value)))
_StrictLoader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", str(node.value).lower())),
)


def load_yaml(text: str, origin: str = "YAML") -> Any:
    """Reads one YAML document as plain data.

    Raises:
        ConfigError: bad syntax, a tag, an alias or a key that stands twice; ``origin`` is named.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UnsafeInputError(f"{origin}: larger than the {MAX_YAML_BYTES} bytes that are read as YAML")
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (ConfigError, UnsafeInputError) as error:
        raise type(error)(f"{origin}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not plain YAML: {' '.join(str(error).split())}") from error


def dump_yaml(obj: Any) -> str:
    """Writes plain data as YAML in the order given."""
    return yaml.dump(obj, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def preset_folder() -> Path:
    """Returns the folder of the shipped presets: inside the installed package, or beside it in a checkout."""
    package = Path(pyramid.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def presets() -> list[str]:
    """Returns the names of the shipped presets, such as ``lam/tiny``."""
    root = preset_folder()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def load_config_file(name: str | Path) -> tuple[dict[str, Any], str]:
    """Reads a YAML file or a preset by name; returns its mapping and where it was found."""
    path = str(name)
    if not path.endswith((".yaml", ".yml")):
        if path not in presets():
            raise ConfigError(
                f"no preset '{path}'{nearest(path, presets())}; presets: {', '.join(presets())}; or a .yaml"
            )
        path = str(preset_folder() / f"{path}.yaml")
    if not files.exists(path):
        raise ConfigError(f"no config file '{path}'")
    data = load_yaml(files.read_text(path, max_bytes=MAX_YAML_BYTES), path)
    if not isinstance(data, dict | None):
        raise ConfigError(f"{path}: a config is a mapping of names to values")
    return data or {}, path


def resolve(cls: type[T], config: str | Path | Mapping[str, Any] | T | None = None, **overrides: Any) -> T:
    """Builds a config from a preset name, a YAML file, a mapping or an instance, and overrides on top.

    Overrides may be nested mappings or dotted names: ``resolve(C, "lam/tiny", **{"trainer.max_steps": 20})``.

    Raises:
        ConfigError: an unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    origin = cls.__name__
    if config is None:
        data: dict[str, Any] = {}
    elif isinstance(config, cls):
        data = to_dict(config)
    elif isinstance(config, Mapping):
        data = dict(config)
    else:
        data, origin = load_config_file(cast("str | Path", config))
    for name, value in overrides.items():
        nested = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        data = _merge(data, nested)
    return from_dict(cls, data, origin)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def from_dict(cls: type[T], data: Mapping[str, Any], origin: str = "") -> T:
    """Builds a config dataclass from plain data, checking names, types and ranges."""
    import jsonargparse

    origin = origin or cls.__name__
    check_keys(cls, data, origin)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, _ROOT)
    try:
        return cast(T, parser.instantiate(parser.parse_object({_ROOT: _plain(data)}))[_ROOT])
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Puts a parser's message into one line without the parser's own names."""
    text = " ".join(str(error).split()).replace(f'"{_ROOT}.', '"').replace("typing.", "")
    text = re.sub(r'^Parser key "([^"]*)": ', r"\1: ", text)
    union = re.search(r"Subtypes: \[(.*?)\] Errors:.*Given value: (.*)$", text)
    if union:
        kinds = re.sub(r"<class '([^']*)'>", r"\1", union[1]).replace("NoneType", "null").replace(", ", " or ")
        return f"{text.split(': ')[0]}: expected {kinds}, got {union[2]}"
    return re.sub(r"Expected an? (?:<class '([^']*)'>|(.*?))\. Got value: ", r"expected \1\2, got ", text)


def _plain(obj: Any) -> Any:
    """Turns mappings, tuples and paths into what a YAML file could hold."""
    if isinstance(obj, Mapping):
        return {str(k): _plain(v) for k, v in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(v) for v in obj]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return to_dict(obj)
    return str(obj) if isinstance(obj, Path) else obj


def check_keys(cls: Any, data: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    """Refuses keys that ``cls`` or the dataclasses in its fields do not declare, naming the nearest one."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key, value in data.items():
        if key not in names:
            raise ConfigError(
                f"{origin}: unknown key '{prefix}{key}'{nearest(str(key), names)}; known: {', '.join(names)}"
            )
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise ConfigError(f"{origin}: '{prefix}{key}' is null; leave it out to get its default")
        for inner, mapped in _dataclasses_in(hints[key]):
            if not isinstance(value, Mapping):
                if dataclasses.is_dataclass(hints[key]):
                    raise ConfigError(f"{origin}: '{prefix}{key}' holds options by name, got {value!r}")
                continue
            for name, part in value.items() if mapped else [("", value)]:
                if isinstance(part, Mapping):
                    check_keys(inner, part, origin, f"{prefix}{key}.{name}." if mapped else f"{prefix}{key}.")


def _dataclasses_in(hint: Any) -> list[tuple[Any, bool]]:
    """Returns the dataclasses that a field's type admits, and whether they stand as values of a mapping."""
    if dataclasses.is_dataclass(hint):
        return [(hint, False)]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return [(a, True) for a in arguments[1:] if dataclasses.is_dataclass(a)]
    return [(a, False) for a in arguments if dataclasses.is_dataclass(a)]


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config as plain data that `from_dict` reads back to an equal config."""
    return cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


_LIBRARIES = ("torch", "av", "decord", "numpy", "pyarrow", "transformers", "vector-quantize-pytorch")


def provenance(*, config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Returns where an artefact comes from: tool, library versions, config, and digests of what it was made from.

    There is no clock and no host in it: the same inputs give the same bytes.
    """
    return {
        "tool": "latent-pyramid",
        "version": pyramid.__version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "config": to_dict(config) if dataclasses.is_dataclass(config) else _plain(config),
        "inputs": dict(inputs),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
