"""Configs: strict names and types, YAML without surprises, the same config after a round trip."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid.config import dump_yaml, from_dict, load_yaml, presets, provenance, resolve, to_dict
from pyramid.errors import ConfigError, UnsafeInputError
from pyramid.verbs import VERBS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    width: int = 4
    """A number."""
    names: tuple[str, ...] = ("a",)
    """Some names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A whole."""

    lr: float = 1e-3
    """A rate."""
    steps: int = 10
    """A number."""
    shuffle: bool = False
    """A switch."""
    kind: Literal["one", "two"] = "one"
    """A choice."""
    rate_hz: float | None = None
    """A number or none."""
    betas: tuple[float, float] = (0.9, 0.99)
    """A pair."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A part."""
    parts: dict[str, Inner] = dataclasses.field(default_factory=dict)
    """Parts by name."""

    def __post_init__(self) -> None:
        """Refuses no steps."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("1.", 1.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("12", 12),
        ("010", 10),
        ("0x1f", 31),
        ("-7", -7),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("3:20", "3:20"),
        ("1_000", "1_000"),
        ("2026-01-02", "2026-01-02"),
        ("null", None),
        ("~", None),
        ("", None),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("=", "="),
        ("<<", "<<"),
        ("[1, 2e1, x]", [1, 20.0, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read() -> None:
    assert math.isnan(load_yaml(".nan"))


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {b: 1, 'b': 2}", "- {x: 1, x: 1}", "1: a\n1: b"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"here\.yaml: line \d: the key '\w' stands twice"):
        load_yaml(text, "here.yaml")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_yaml(value: float) -> None:
    assert load_yaml(dump_yaml({"x": value}))["x"] == value


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
    | st.sampled_from(
        ["1e-4", "on", "yes", "3:20", "null", "~", "1_0", "=", "0x10", "2026-01-02", " ", "- a", "010", "1e5"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), YAML_VALUES, max_size=5))
def test_what_is_dumped_is_read_back(data: dict[str, Any]) -> None:
    assert load_yaml(dump_yaml(data)) == data


def test_later_sources_win_and_leave_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "lr: 1e-4\ninner: {width: 7, names: [x, y]}\n")
    found = resolve(Outer, path, **{"inner.width": 9, "steps": 3})
    assert found == Outer(lr=1e-4, steps=3, inner=Inner(width=9, names=("x", "y")))
    assert isinstance(found.inner.names, tuple)
    assert resolve(Outer, found) == found
    assert resolve(Outer, to_dict(found)) == found
    assert resolve(Outer, found, inner={"width": 1}).inner == Inner(width=1, names=("x", "y"))
    assert resolve(Outer) == Outer()
    assert resolve(Outer, written(tmp_path, "")) == Outer()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 3", "unknown key 'stepps'; did you mean 'steps'"),
        ("inner: {widht: 3}", "unknown key 'inner.widht'; did you mean 'width'"),
        ("parts: {left: {widht: 3}}", "unknown key 'parts.left.widht'; did you mean 'width'"),
        ("zebra: 3", "unknown key 'zebra'; known: lr, steps"),
        ("steps: 1.5", "steps"),
        ("steps: many", "steps"),
        ("steps: true", "steps"),
        ("steps: null", "'steps' is null"),
        ("inner: {width: null}", "'inner.width' is null"),
        ("kind: ~", "'kind' is null"),
        ("shuffle: 1", "shuffle"),
        ("lr: fast", "lr"),
        ("kind: three", "kind"),
        ("rate_hz: often", "rate_hz: expected"),
        ("betas: [0.1]", "betas"),
        ("betas: [0.1, 0.2, 0.3]", "betas"),
        ("inner: 3", "'inner' holds options by name"),
        ("inner:", "'inner' is null"),
        ("steps: 0", "steps must be at least 1, got 0"),
        ("- a", "a config is a mapping"),
        ("class_path: os.system", "unknown key 'class_path'"),
        ("inner: {class_path: os.system, init_args: {}}", "unknown key 'inner.class_path'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, path)
    assert message in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_checked_like_files() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'inner\.widht'; did you mean 'width'"):
        resolve(Outer, **{"inner.widht": 3})
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        resolve(Outer, steps=-1)
    with pytest.raises(ConfigError, match=r"no preset 'lam/tny'; did you mean 'lam/tiny'"):
        resolve(Outer, "lam/tny")
    with pytest.raises(ConfigError, match=r"no config file '.*none\.yaml'"):
        resolve(Outer, "none.yaml")


OUTER = st.builds(
    Outer,
    lr=st.floats(allow_nan=False),
    steps=st.integers(1, 10**9),
    shuffle=st.booleans(),
    kind=st.sampled_from(["one", "two"]),
    rate_hz=st.none() | st.floats(0.1, 1e6),
    inner=st.builds(Inner, width=st.integers(), names=st.lists(st.sampled_from(["a", "1e-4", "on", ""])).map(tuple)),
    parts=st.dictionaries(
        st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.builds(Inner, width=st.integers()), max_size=2
    ),
)


@settings(max_examples=12, deadline=None)
@given(OUTER)
def test_a_config_survives_yaml(config: Outer) -> None:
    assert from_dict(Outer, load_yaml(dump_yaml(to_dict(config)))) == config


def config_classes() -> list[str]:
    return sorted({verb.config for verb in VERBS if verb.config})


@pytest.mark.parametrize("place", config_classes())
def test_every_verbs_config_has_defaults_docs_and_a_round_trip(place: str) -> None:
    module, _, name = place.partition(":")
    cls = getattr(importlib.import_module(module), name)
    config = cls()
    assert resolve(cls, load_yaml(dump_yaml(to_dict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)
    with pytest.raises(ConfigError, match="unknown key 'zebra'"):
        resolve(cls, {"zebra": 1})


def test_every_shipped_preset_is_a_config() -> None:
    # A package's presets are those of its `config`.
    places = [place for place in config_classes() if place.split(":")[0].endswith(".config")]
    by_folder = {place.split(".")[0]: place for place in places if not place.startswith("pyramid")}
    checked = 0
    for preset in presets():
        place = by_folder.get(preset.split("/")[0])
        if place:
            module, _, name = place.partition(":")
            resolve(getattr(importlib.import_module(module), name), preset)
            checked += 1
    assert checked >= 3


def test_provenance_has_no_clock_and_no_place() -> None:
    first, again = (provenance(config=Outer(), inputs={"clips": "abc"}) for _ in range(2))
    assert first == again
    assert first["config"] == to_dict(Outer())
    assert first["inputs"] == {"clips": "abc"}
    assert set(first) == {"tool", "version", "python", "libraries", "config", "inputs"}


def test_an_enormous_document_is_refused() -> None:
    with pytest.raises(UnsafeInputError, match="larger than"):
        load_yaml("a" * (2**20 + 1))
    with pytest.raises(UnsafeInputError, match="values in one YAML document"):
        load_yaml("[" + "1," * 60_000 + "]")
