"""Mixture files: what makes no mixture is refused by name before anything is opened."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from pyramid.errors import ConfigError
from pyramid.mixture.spec import MixtureSpec, SourceSpec, TierSpec, describe, read_mixture, with_weights

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


def test_other_shares_of_the_same_sources(tmp_path: Path) -> None:
    spec = with_weights(spec_of(tmp_path, GOOD), {"human": 1, "dreams": 2.5, "arm": 0.25, "lab": 0})
    assert spec.shares() == pytest.approx({"human": 4 / 15, "dreams": 10 / 15, "arm": 1 / 15}, abs=1e-8)
    assert with_weights(spec, {"lab": 0.1}).shares() == {"lab": 1}
    for weights_of, message in (({"armm": 1}, "did you mean 'arm'"), ({"arm": -1}, "'arm'"), ({"arm": 0}, "above 0")):
        with pytest.raises(ConfigError, match=message):
            with_weights(spec, weights_of)


def two_files(tmp_path: Path, lower: str, upper: str) -> MixtureSpec:
    (tmp_path / "common").mkdir(exist_ok=True)
    (tmp_path / "common" / "base.yaml").write_text(lower)
    return spec_of(tmp_path, upper)


def test_a_file_may_extend_another(tmp_path: Path) -> None:
    upper = (
        "extends: common/base.yaml\nseed: 5\ntiers: {top: {sources: {arm: {weight: 1}, new: {shards: n, use: action}}}}"
    )
    spec = two_files(tmp_path, GOOD, upper)
    assert (spec.seed, spec.horizon) == (5, 4)
    top = spec.tiers["top"].sources
    assert list(top) == ["arm", "lab", "new"]
    assert (top["arm"].weight, top["lab"].weight) == (1, 1)
    found = {name: spec.path(source.folders()[0]) for name, source in top.items()}
    assert found == {"arm": str(tmp_path / "common/arm"), "lab": "/abs/lab", "new": str(tmp_path / "n")}
    assert spec.tiers["base"].sources["human"].runs() == ["common/human/labels/lam"]


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (GOOD, "extends: common/base.yaml\ntiers: 3", "'tiers' is a mapping in one of the files"),
        (GOOD, "extends: common/base.yaml\nhorizon: {a: 1}", "'horizon' is a mapping in one of the files"),
        (GOOD, "extends: [common/base.yaml]", "names one mixture file"),
        (GOOD, "extends: common/none.yaml", "no config file"),
        ("extends: ../mix.yaml", "extends: common/base.yaml", "circle"),
        (GOOD, "extends: common/base.yaml\ntiers: {top: {sources: {arm: {wieght: 1}}}}", "did you mean 'weight'"),
    ],
)
def test_what_cannot_be_merged_is_named(tmp_path: Path, lower: str, upper: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        two_files(tmp_path, lower, upper)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alpha: -1", "alpha must be in"),
        ("alpha: .nan", "alpha must be in"),
        ("max_epochs: 2", "go together"),
        ("max_epochs: .inf\nbudget_samples: 3", "go together"),
        ("window_shards: 0", "window_shards must be at least 1"),
        ("max_bad_share: 1.0", "max_bad_share"),
        ("schedule: [{step: 3, tiers: {top: 1}}]", "schedule_batch"),
        ("schedule_batch: 4", "schedule_batch"),
        ("schedule_batch: 4\nschedule: [{step: 3, tiers: {topp: 1}}]", "did you mean 'top'"),
        ("schedule_batch: 4\nschedule: [{step: 3, sources: {armm: 1}}]", "did you mean 'arm'"),
        ("schedule_batch: 4\nschedule: [{step: 3, tiers: {top: -1}}]", "weight"),
        ("schedule_batch: 4\nschedule: [{step: 3}]", "names tiers or sources"),
        ("schedule_batch: 4\nschedule: [{step: 0, tiers: {top: 1}}]", "step >= 1"),
        ("schedule_batch: 4\nschedule: [{step: 9, over: 5, tiers: {top: 1}}, {step: 12, tiers: {top: 2}}]", "step 12"),
        ("schedule_batch: 4\nschedule: [{step: 3, tiers: {top: 0, base: 0}}]", "leaves no source"),
        ("augment: {crop: 0.0}", "augment.crop"),
        ("augment: {hue: 0.9}", "augment.hue"),
    ],
)
def test_options_out_of_range_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(tmp_path, GOOD + line)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{shards: [a, b], use: latent, labels: [l]}", "1 label runs for 2 shard folders"),
        ("{shards: [], use: action}", "for 0 shard folders"),
        ("{shards: a, use: action, filter: {min_votes: 2}}", "filter.min_votes is for labels"),
        ("{shards: a, use: action, filter: {text: '('}}", "no regular expression"),
        ("{shards: a, use: latent, labels: l, filter: {min_recon_gain: .nan}}", "min_recon_gain"),
        ("{shards: a, use: latent, labels: l, filter: {min_recon: 1}}", "did you mean 'min_recon_gain'"),
    ],
)
def test_sources_that_make_no_sense_are_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(tmp_path, f"tiers: {{top: {{weight: 1, sources: {{x: {source}}}}}}}")
    assert message in str(caught.value)
