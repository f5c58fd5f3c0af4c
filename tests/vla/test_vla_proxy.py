"""The proxy `vla`: real policies trained on weights, real held-out episodes, the same answer to the same run."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import drawing
import numpy as np
import pytest
from tiny_policy import TINY

from pyramid.config import dump_yaml, to_dict
from pyramid.mixture.tune.config import DROConfig
from pyramid.mixture.tune.dro import GroupDRO
from pyramid.mixture.tune.proxy import ProxyRun, ReweightedProxy
from pyramid.mixture.tune.verb import mix_tune
from pyramid.mixture.verbs import mix_show
from pyramid.nn.trainer import TrainerConfig
from vla.config import VLAConfig
from vla.proxy import VLAProxy, load

CONFIG = VLAConfig(policy=TINY, trainer=TrainerConfig(batch_size=8, lr=3e-3, warmup_steps=2, threads=1))
EVEN = {"other": 0.5, "arm": 0.5}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("proxy")
    arm = drawing.write_shards(root / "arm", [9, 7, 8, 8], n_val=1)
    other = drawing.write_shards(root / "other", [6, 6, 6], n_val=1, first_clip=10, embodiment="other")
    data = {
        "horizon": 3,
        "tiers": {
            "top": {"weight": 0.6, "sources": {"arm": {"shards": arm, "use": "action"}}},
            "base": {"weight": 0.4, "sources": {"other": {"shards": other, "use": "action"}}},
        },
    }
    path = root / "mixture.yaml"
    path.write_text(dump_yaml(data))
    return str(path)


@pytest.fixture(scope="module")
def proxy(mixture: str) -> VLAProxy:
    return VLAProxy(mixture, CONFIG)


def test_it_is_a_proxy_and_knows_its_data(proxy):
    assert isinstance(proxy, ReweightedProxy)
    assert {name: size.items for name, size in proxy.sizes().items()} == {"other": 12, "arm": 24}
    assert proxy.sizes()["arm"].hours == pytest.approx(24 / 10 / 3600)
    assert proxy.targets() == ["other", "arm"]


def test_equal_runs_give_equal_losses_and_others_do_not(proxy):
    run = ProxyRun(weights=EVEN, budget=3, seed=1)
    losses = proxy.run(run)
    assert set(losses) == {"other", "arm"}
    assert proxy.run(run) == losses
    assert proxy.run(ProxyRun(weights=EVEN, budget=3, seed=2)) != losses
    assert proxy.run(ProxyRun(weights={"other": 0.25, "arm": 0.75}, budget=3, seed=1)) != losses


def test_what_is_trained_on_is_learned(proxy, monkeypatch):
    """A source without weight is a target still, and does worse than with all the weight, or with more steps.

    Measured on the training clips: three clips teach nothing about a fourth.
    """
    monkeypatch.setitem(proxy.__dict__, "_val", proxy._train)
    alone, without, short = (
        proxy.run(ProxyRun(weights={name: 1.0}, budget=budget, seed=0))["arm"]
        for name, budget in (("arm", 60), ("other", 60), ("arm", 2))
    )
    assert alone < 0.9 * min(without, short)


def test_shares_are_drawn_exactly_and_parts_lie_in_each_other(proxy, monkeypatch):
    seen: list[str] = []
    batch = proxy._batch
    monkeypatch.setattr(
        proxy, "_batch", lambda picked: seen.extend(n for n, i in picked.items() for _ in i) or batch(picked)
    )
    proxy.run(ProxyRun(weights={"other": 0.25, "arm": 0.75}, budget=5, seed=1))
    assert (seen.count("other"), seen.count("arm")) == (10, 30)
    parts = {
        f: set(proxy._items(ProxyRun(weights=EVEN, budget=1, seed=9, fractions={"arm": f}))["arm"])
        for f in (0.3, 0.7, 1.0)
    }
    assert parts[0.3] < parts[0.7] < parts[1.0]
    assert len(parts[1.0]) == 24
    assert len({proxy._train["arm"].key[i] for i in parts[0.3]}) == 1


def test_the_digest_leaves_out_the_weights_of_the_file_and_nothing_else(proxy, mixture, tmp_path):
    text = Path(mixture).read_text()
    (tmp_path / "heavier.yaml").write_text(text.replace("0.6", "0.9"))
    (tmp_path / "longer.yaml").write_text(text.replace("horizon: 3", "horizon: 2"))
    assert VLAProxy(str(tmp_path / "heavier.yaml"), CONFIG).digest() == proxy.digest()
    assert VLAProxy(str(tmp_path / "longer.yaml"), CONFIG).digest() != proxy.digest()


def test_excess_is_against_the_reference_on_the_same_samples_and_noise(proxy):
    """A model compared with itself has no excess; a fresh one has."""
    seen = []
    reference = proxy.reference(ProxyRun(weights=EVEN, budget=20, seed=0))
    groups = proxy._even_batch(3, 5)
    assert {name: len(group.key) for name, group in groups.items()} == {"other": 4, "arm": 4}
    one, two = (proxy._per_source(reference, groups, 3, 5) for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)
    rule = GroupDRO(["other", "arm"], np.ones(2), DROConfig(prior="uniform"))
    proxy.train_reweighted(reference, lambda excess: seen.append(excess) or rule(excess), budget=4, seed=0)
    assert len(rule.history) == 4
    assert np.mean([e.mean() for excess in seen for e in excess.values()]) > 0


def test_tuning_a_real_pyramid_leaves_a_mixture_to_train_on(mixture, tmp_path, monkeypatch):
    info = tmp_path / "site" / "proxy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: proxy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyramid.proxies]\nvla_here = vla.proxy:load\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "policy.yaml").write_text(dump_yaml(to_dict(CONFIG)))
    options = {"proxy": "vla_here", "proxy_config": str(tmp_path / "policy.yaml"), "budget": 4, "confirm_seeds": 2}
    result = mix_tune(mixture, out=str(tmp_path / "out"), method="halving", **options, **{"design.runs": 5})
    shown = mix_show(str(tmp_path / "out" / "tuned.yaml"))
    assert {s["source"]: s["share"] for s in shown.sources} == pytest.approx(result.arms[result.chosen].weights)


def test_the_entry_point_is_declared():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = declared["pyramid.proxies"]["vla"].partition(":")
    assert getattr(import_module(module), name) is load
