"""Batches: pure functions of the step, exact in what they hold, each item once an epoch."""

from __future__ import annotations

from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
import pytest
import torch
from mixture_data import ARM, DREAMS, HORIZON, HUMAN, LATENT_DIM, LATENT_TOKENS, label_tables, latent_of

from pyramid import parquet
from pyramid.config import dump_yaml
from pyramid.errors import DataError
from pyramid.mixture.batch import Batch, MixtureStream, open_mixture
from pyramid.mixture.sketch import ACCURACY
from pyramid.mixture.statistics import embodiment_statistics
from pyramid.mixture.verbs import mix_show, mix_simulate


def opened(path: str, batch_size: int = 7, **options) -> MixtureStream:
    return open_mixture(path, batch_size=batch_size, image_size=32, **options)


def flat(batch: Batch) -> dict[int, tuple]:
    """What a batch holds at each position of the global order."""
    found = {}
    for group in batch:
        for b in range(len(group.source)):
            number = drawing.read_picture(group.images[b, 0].numpy())
            values = (group.action[b].tolist(), group.mask[b].tolist(), group.state[b].tolist())
            found[int(group.position[b])] = (
                group.source[b],
                group.key[b],
                group.text[b],
                group.tier[b],
                number,
                *values,
            )
    return found


def equal(one: Batch, other: Batch) -> bool:
    tensors = ("images", "state", "state_known", "action", "mask", "weight", "position")
    words = ("embodiment", "text", "source", "tier", "key")
    return len(one) == len(other) and all(
        all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)
        and all(getattr(a, n) == getattr(b, n) for n in words)
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_is_a_function_of_its_step_alone(path: str) -> None:
    in_order = [opened(path).batch(step) for step in range(6)]
    stream = opened(path)
    for step in (5, 0, 3, 3, 1, 4, 2, 5):
        assert equal(stream.batch(step), in_order[step])


def test_the_global_order_does_not_depend_on_the_batch_size(path: str) -> None:
    def positions(batch_size: int) -> dict[int, tuple]:
        stream = opened(path, batch_size)
        return {p: what for step in range(42 // batch_size) for p, what in flat(stream.batch(step)).items()}

    assert positions(1) == positions(6) == positions(14)
    assert sorted(positions(6)) == list(range(42))


def test_without_a_cache_it_is_the_same(spec: dict, path: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(dump_yaml({**spec, "cache_mb": 0}))
    small = opened(str(tmp_path / "small.yaml"))
    assert all(equal(small.batch(step), opened(path).batch(step)) for step in (0, 4))
    assert small.digest == opened(path).digest


def test_every_sample_holds_what_belongs_to_its_picture(path: str) -> None:
    stream = opened(path, 60)
    for source, key, text, tier, number, action, mask, state in flat(stream.batch(0)).values():
        clip, t = divmod(number, 100)
        assert key == drawing.key_of(clip)
        assert text == f"show {clip}"
        if source == "human":
            assert tier == "base"
            assert np.allclose(np.ravel(action), latent_of(number), atol=1e-3)
            assert np.all(mask)
            assert state == []
            continue
        frames = ARM[clip] if source == "arm" else DREAMS[clip - 20] - 1
        left = min(HORIZON, frames - t)
        second = [-(number + k) if source == "arm" else 0.5 for k in range(left)]
        assert action == [[number + k, second[k]] for k in range(left)] + [[0.0, 0.0]] * (HORIZON - left)
        assert mask == [[k < left] * 2 for k in range(HORIZON)]
        assert state == ([number] if source == "arm" else [])


def test_each_item_once_an_epoch(path: str) -> None:
    stream = opened(path, 10)
    seen: dict[str, list[int]] = {"arm": [], "human": [], "dreams": []}
    for step in range(12):
        for _, (source, _, _, _, number, *_) in sorted(flat(stream.batch(step)).items()):
            seen[source].append(number)
    assert {name: len(numbers) for name, numbers in seen.items()} == {"arm": 60, "human": 36, "dreams": 24}
    every = {
        "arm": [drawing.number_of(c, t) for c, n in enumerate(ARM) for t in range(n)],
        "human": [drawing.number_of(10 + c, t) for c, n in enumerate(HUMAN) for t in range(n - 1)],
        "dreams": [drawing.number_of(20 + c, t) for c, n in enumerate(DREAMS) for t in range(n - 1)],
    }
    for name, numbers in seen.items():
        n = len(every[name])
        epochs = [numbers[i : i + n] for i in range(0, len(numbers) - n + 1, n)]
        assert all(sorted(epoch) == every[name] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) >= 3


def test_counts_stay_within_one_of_the_shares_at_every_prefix(path: str) -> None:
    stream = opened(path, 1)
    counts = dict.fromkeys(("arm", "human", "dreams"), 0)
    for n in range(1, 101):
        [[drawn]] = [stream.draw(n - 1, 1)]
        counts[drawn.source.name] += 1
        for name, share in (("arm", 0.5), ("human", 0.3), ("dreams", 0.2)):
            assert abs(counts[name] - n * share) <= 0.75 + 1e-9


def test_bodies(path: str) -> None:
    bodies = {name: body.to_dict() for name, body in opened(path).embodiments.items()}
    assert bodies == {
        "arm": {"name": "arm", "state_dim": 1, "action_dim": 2, "horizon": 3, "rate_hz": 10.0, "label": "action"},
        "human_latent": {
            "name": "human_latent",
            "state_dim": 0,
            "action_dim": LATENT_DIM,
            "horizon": LATENT_TOKENS,
            "rate_hz": pytest.approx(5.0),
            "label": "latent",
        },
        "generated_pseudo": {
            "name": "generated_pseudo",
            "state_dim": 0,
            "action_dim": 2,
            "horizon": 3,
            "rate_hz": 5.0,
            "label": "pseudo",
        },
    }


def test_groups_come_by_name_and_within_them_in_order(path: str) -> None:
    for group_names in ([g.embodiment for g in opened(path).batch(s)] for s in range(3)):
        assert group_names == sorted(group_names)
    for group in opened(path, 30).batch(2):
        assert group.position.tolist() == sorted(group.position.tolist())
        assert group.images.dtype == torch.uint8
        assert group.images.shape[1:] == (1, 32, 32, 3)
        assert group.state_known.tolist() == [group.embodiment == "arm"] * len(group.source)


def test_statistics_are_those_of_the_raw_numbers(path: str) -> None:
    found = opened(path).statistics
    numbers = np.array([drawing.number_of(c, t) for c, n in enumerate(ARM) for t in range(n)], float)
    low, high = np.quantile(numbers, [0.01, 0.99])
    assert found["arm"]["action"].center == pytest.approx([(low + high) / 2, -(low + high) / 2], rel=ACCURACY)
    assert found["arm"]["state"].scale == pytest.approx([(high - low) / 2], rel=ACCURACY)
    latents = np.array([latent_of(drawing.number_of(10 + c, t)) for c, n in enumerate(HUMAN) for t in range(n - 1)])
    tokens = latents.reshape(-1, LATENT_DIM)
    assert found["human_latent"]["action"].center == pytest.approx(tokens.mean(0), rel=1e-5)
    assert found["human_latent"]["action"].scale == pytest.approx(tokens.std(0), rel=1e-5)
    assert set(found["human_latent"]) == {"action"}


def with_second_arm(spec: dict, shards: str, **options) -> dict:
    tiers = {name: dict(tier, sources=dict(tier["sources"])) for name, tier in spec["tiers"].items()}
    tiers["top"]["sources"]["arm2"] = {"shards": shards, "use": "action", **options}
    return {**spec, "tiers": tiers}


def test_statistics_of_one_body_weigh_its_sources_as_they_are_drawn(spec: dict, tmp_path: Path) -> None:
    more = drawing.write_shards(tmp_path / "arm2", [8] * 3, first_clip=7)
    (tmp_path / "mix.yaml").write_text(dump_yaml(with_second_arm(spec, more, weight=2)))
    # Sources of 12 and 24 rows, drawn 1 : 2, count as if all their rows were in one.
    clips = [*enumerate(ARM), *((7 + i, 8) for i in range(3))]
    numbers = np.array([drawing.number_of(c, t) for c, n in clips for t in range(n)], float)
    low, high = np.quantile(numbers, [0.01, 0.99])
    center = opened(str(tmp_path / "mix.yaml")).statistics["arm"]["state"].center
    assert center == pytest.approx([(low + high) / 2], rel=ACCURACY)
    (tmp_path / "mix.yaml").write_text(dump_yaml(with_second_arm(spec, more, weight=4)))
    stream = opened(str(tmp_path / "mix.yaml"))
    [pooled] = [
        kinds["state"]
        for name, kinds in embodiment_statistics(stream.sources, stream.plan.shares).items()
        if name == "arm"
    ]
    own = [
        np.array([drawing.number_of(c, t) for c, n in some for t in range(n)], float) for some in (clips[:3], clips[3:])
    ]
    assert pooled.mean == pytest.approx([own[0].mean() / 5 + own[1].mean() * 4 / 5])
    second = (own[0] ** 2).mean() / 5 + (own[1] ** 2).mean() * 4 / 5
    assert pooled.std == pytest.approx(np.sqrt(second - pooled.mean**2))
    assert (pooled.low[0], pooled.high[0], pooled.count) == (own[0].min(), own[1].max(), 36)


def test_bodies_that_differ_need_names_of_their_own(spec: dict, tmp_path: Path) -> None:
    fast = drawing.write_shards(tmp_path / "fast", [9], first_clip=7, rate_hz=20.0)
    (tmp_path / "mix.yaml").write_text(dump_yaml(with_second_arm(spec, fast)))
    with pytest.raises(DataError, match=r"embodiment 'arm': source 'arm' .* source 'arm2'"):
        opened(str(tmp_path / "mix.yaml"))
    (tmp_path / "mix.yaml").write_text(dump_yaml(with_second_arm(spec, fast, embodiment="fast_arm")))
    assert opened(str(tmp_path / "mix.yaml")).embodiments["fast_arm"].rate_hz == 20.0


def test_held_out_clips_are_never_drawn(path: str, spec: dict, tmp_path: Path) -> None:
    keys = {key for _, key, *_ in flat(opened(path, 100).batch(0)).values()}
    assert drawing.key_of(3) not in keys
    (tmp_path / "arm.yaml").write_text(dump_yaml({**spec, "tiers": {"top": spec["tiers"]["top"]}}))
    held = opened(str(tmp_path / "arm.yaml"), 8, split="val").batch(0)
    assert {key for group in held for key in group.key} == {drawing.key_of(3)}


def test_digests_follow_everything_that_decides_a_batch(spec: dict, path: str, tmp_path: Path) -> None:
    first = opened(path)
    assert first.digest == opened(path).digest
    for change in ({"seed": 4}, {"horizon": 4}):
        (tmp_path / "other.yaml").write_text(dump_yaml({**spec, **change}))
        assert opened(str(tmp_path / "other.yaml")).digest != first.digest
    assert open_mixture(path, batch_size=7, image_size=16).digest != first.digest


def test_what_a_source_lacks_is_named(spec: dict, tmp_path: Path) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [3, 3], actions=False)
    cases = [
        ({"shards": videos, "use": "action"}, "source 'x': no clip has measured actions in"),
        ({"shards": str(tmp_path / "none"), "use": "action"}, "no shards in"),
        (
            {"shards": videos, "use": "latent", "labels": str(tmp_path / "nothing")},
            "has no labels for clips-000000.tar",
        ),
        (
            {"shards": videos, "use": "latent", "labels": label_tables(videos, use="pseudo")},
            "source 'x': .* no column 'latent'",
        ),
        (
            {"shards": videos, "use": "latent", "labels": spec["tiers"]["base"]["sources"]["human"]["labels"]},
            "label again",
        ),
    ]
    for source, message in cases:
        (tmp_path / "mix.yaml").write_text(dump_yaml({"tiers": {"top": {"weight": 1, "sources": {"x": source}}}}))
        with pytest.raises(DataError, match=message):
            opened(str(tmp_path / "mix.yaml"))


@pytest.mark.parametrize(("column", "value"), [("codes", None), ("gap_s", 0.0), ("frame", 77)])
def test_labels_that_make_no_actions_are_refused(tmp_path: Path, column: str, value: float | None) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [3, 3], actions=False)
    labels = label_tables(videos, use="latent")
    table_path = f"{labels}/clips-000000.parquet"
    table, metadata = parquet.read(table_path), parquet.metadata(table_path)
    place = table.column_names.index(column)
    if value is None:
        table = table.remove_column(place)
    else:
        field = table.schema.field(column)
        table = table.set_column(place, field, pa.array([value] * table.num_rows, field.type))
    parquet.write(table_path, table, metadata)
    source = {"shards": videos, "use": "latent", "labels": labels}
    (tmp_path / "mix.yaml").write_text(dump_yaml({"tiers": {"base": {"weight": 1, "sources": {"x": source}}}}))
    with pytest.raises(DataError, match="source 'x'"):
        opened(str(tmp_path / "mix.yaml"))


def test_show_and_simulate(path: str) -> None:
    shown = mix_show(path)
    assert [(s["source"], s["tier"], s["items"], s["share"]) for s in shown.sources] == [
        ("human", "base", 8, pytest.approx(0.3)),
        ("dreams", "middle", 8, pytest.approx(0.2)),
        ("arm", "top", 12, pytest.approx(0.5)),
    ]
    assert shown.sources[2]["epochs_per_100k"] == pytest.approx(100_000 * 0.5 / 12)
    assert "top" in repr(shown)
    found = mix_simulate(path, draws=1003)
    assert sum(found.counts.values()) == 1003
    assert found.target == {"human": 0.3, "dreams": 0.2, "arm": 0.5}
    assert found.max_deviation <= 0.75
    counted = dict.fromkeys(found.counts, 0)
    for drawn in opened(path).draw(0, 1003):
        counted[drawn.source.name] += 1
    assert counted == found.counts
    assert "0.3" in repr(found) or "30" in repr(found)
