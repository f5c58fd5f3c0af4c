"""Mixture files: what makes no mixture is refused by name before anything is opened."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from pyramid.errors import ConfigError
from pyramid.mixture.spec import MixtureSpec, SourceSpec, TierSpec, describe, read_mixture

GOOD = """
tiers:
  top:
    weight: 0.5
    sources:
      arm: {shards: arm, use: action, weight: 3}
      lab: {shards: /abs/lab, use: action, weight: 1e0}
  base:
    weight: 0.25
    sources:
      human: {shards: human, use: latent, labels: human/labels/lam}
      spare: {shards: none, use: action, weight: 0}
  middle:
    weight: 0
    sources:
      dreams: {shards: dreams, use: pseudo, labels: dreams/labels/idm}
horizon: 4
"""


def spec_of(tmp_path: Path, text: str) -> MixtureSpec:
    (tmp_path / "mix.yaml").write_text(text)
    return read_mixture(str(tmp_path / "mix.yaml"))


def test_shares_are_exact(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, GOOD)
    assert spec.shares() == {"human": Fraction(1, 3), "arm": Fraction(1, 2), "lab": Fraction(1, 6)}
    assert [(tier, name) for tier, name, _ in spec.sources()] == [("base", "human"), ("top", "arm"), ("top", "lab")]
    assert sum(spec.shares().values()) == 1


def test_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, GOOD)
    assert spec.path("arm") == str(tmp_path / "arm")
    assert spec.path("/abs/lab") == "/abs/lab"
    assert spec.path("s3://bucket/arm") == "s3://bucket/arm"


def test_where_the_file_lies_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert describe(spec_of(tmp_path, GOOD)) == describe(spec_of(tmp_path / "other", GOOD))


def weights(top: str, base: str = "1") -> str:
    return f"""
tiers:
  top: {{weight: {top}, sources: {{arm: {{shards: a, use: action}}}}}}
  base: {{weight: {base}, sources: {{human: {{shards: h, use: latent, labels: l}}}}}}
"""


@pytest.mark.parametrize("weight", ["-1", "-0.001", ".nan", ".inf", "null", "many", "[1]"])
def test_weights_that_are_no_shares_are_refused(tmp_path: Path, weight: str) -> None:
    with pytest.raises(ConfigError, match="weight"):
        spec_of(tmp_path, weights(weight))
    with pytest.raises(ConfigError, match="weight"):
        spec_of(
            tmp_path, f"tiers: {{top: {{weight: 1, sources: {{a: {{shards: x, use: action, weight: {weight}}}}}}}}}"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("horizon: 3", "a mixture needs 'tiers'"),
        ("", "a mixture needs 'tiers'"),
        ("tiers: {}", "a tier with a weight above 0"),
        (weights("0", "0"), "a tier with a weight above 0"),
        ("tiers: {top: {weight: 1, sources: {}}}", "a tier needs a source"),
        ("tiers: {top: {weight: 1, sources: {a: {shards: x, use: action, weight: 0}}}}", "a tier needs a source"),
        (
            "tiers: {topp: {weight: 1, sources: {a: {shards: x, use: action}}}}",
            "unknown tier 'topp'; did you mean 'top'",
        ),
        ("tiers: {top: {weight: 1, sources: {a: {shards: x, use: actoin}}}}", "use"),
        ("tiers: {top: {weight: 1, sources: {a: {use: action}}}}", "shards"),
        ("tiers: {top: {wieght: 1, sources: {a: {shards: x, use: action}}}}", "did you mean 'weight'"),
        ("tiers: {top: {weight: 1, sources: {a: {shards: x, use: action, labels: y}}}}", "without a label run"),
        ("tiers: {top: {weight: 1, sources: {a: {shards: x, use: latent}}}}", "with a label run"),
        (
            "tiers: {top: {weight: 1, sources: {a: {shards: x, use: action, embodiment: My Arm}}}}",
            "embodiment 'My Arm'",
        ),
        (GOOD.replace("horizon: 4", "horizon: 0"), "horizon must be at least 1"),
        (GOOD.replace("human:", "arm:"), "the source 'arm' stands in two tiers"),
        (GOOD.replace("lab:", "arm:"), "the key 'arm' stands twice"),
        (GOOD + "folder: /etc", "unknown key 'folder'"),
        (GOOD + "sed: 1", "unknown key 'sed'; did you mean 'seed'"),
        (GOOD + "unit: minutes", "unit"),
    ],
)
def test_what_makes_no_mixture_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(tmp_path, text)
    assert message in str(caught.value)
    assert "mix.yaml" in str(caught.value)


def test_specs_can_be_made_in_a_notebook() -> None:
    spec = MixtureSpec(tiers={"top": TierSpec(weight=2, sources={"a": SourceSpec(shards="x", use="action")})})
    assert spec.shares() == {"a": 1}
    assert spec.path("x") == "x"
