"""The robot is drawn where the hand was, objects stay, and what comes out serves as the robot's own videos do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sprites
import torch
from errands import errand, silent

from idm.redraw import redraw
from idm.redrawing import RedrawConfig, Redrawer
from pyramid import label, pack, scan
from pyramid.errors import ConfigError, DataError
from pyramid.shards.reader import ShardSet

pytestmark = pytest.mark.xdist_group("looks")  # What `errands` makes is made once.

SIDE, TABLE = 48, np.array([120.0, 90.0, 70.0])
LIGHT, TINT = 0.8, 12.0


def scene(state, thing, *, hand):
    """Draws a table with a blue thing on it, and at a state (x, y) a pale hand or a red arm with white fingers."""
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = TABLE + 25 * np.sin(x / 3)[..., None] + 15 * np.cos(y / 5)[..., None]
    picture[(abs(x - thing[0]) < 3) & (abs(y - thing[1]) < 3)] = (30, 40, 200)
    if hand:
        picture[(x - state[0]) ** 2 + (y - state[1]) ** 2 < 25] = (250, 210, 190)
        return picture * LIGHT + TINT
    picture[(abs(x - state[0]) < 3) & (y < state[1] - 3)] = (190, 20, 30)
    picture[(abs(x - state[0]) < 4) & (abs(y - state[1]) < 4)] = (240, 240, 240)
    return picture


def scenes(count, seed, *, hand):
    draw = np.random.default_rng(seed)
    states, things = draw.uniform(10, 38, (count, 2)), draw.uniform(6, 42, (count, 2))
    pictures = np.stack([scene(*both, hand=hand) for both in zip(states, things, strict=True)])
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2), states, things


@pytest.fixture(scope="module")
def drawn():
    """Pictures of hands in other light, what was made of them, and the robot in their place."""
    hands, states, things = scenes(60, 1, hand=True)
    robots, known, _ = scenes(1500, 2, hand=False)
    redrawer = Redrawer(hands, robots, known, list(range(1500)), RedrawConfig())
    truth = np.stack([scene(*both, hand=False) for both in zip(states, things, strict=True)])
    return hands, redrawer.redraw(hands, states), torch.from_numpy(truth).permute(0, 3, 1, 2), redrawer


def test_what_is_drawn_is_the_robot_in_the_hands_place(drawn):
    hands, found, truth, _ = drawn
    assert found.dtype == torch.uint8
    assert found.shape == hands.shape

    def wrong(pictures):
        return ((pictures.float() - truth).abs().amax(1) > 40).float().mean()

    # Half the pixels of hand and arm are on the edges of something, of which the nearest state misses some.
    assert wrong(found) < 0.1 * wrong(hands)


def test_objects_stay_unless_the_robot_hides_them(drawn):
    _, found, truth, _ = drawn
    blue = (truth[:, 2] > 150) & (truth[:, 0] < 60)
    kept = (found[:, 2] > 130) & (found[:, 0] < 80)
    assert (kept & blue).sum() > 0.9 * blue.sum()
    # And none of the objects that lay beside the robot in the frames that it was cut out of.
    assert (kept & ~blue).sum() < 0.1 * blue.sum()


def test_no_hand_is_left(drawn):
    hands, found, _, _ = drawn

    def skin(pictures):
        red, green, blue = pictures.float().unbind(1)
        return ((red > 190) & (red - blue > 25) & (green > 150)).sum()

    assert skin(hands) > 2000
    assert skin(found) < 0.01 * skin(hands)


def test_other_light_is_evened_out(drawn):
    assert drawn[3].agreement > 0.95
    y, x = np.mgrid[:SIDE, :SIDE]
    table = TABLE + 25 * np.sin(x / 3)[..., None] + 15 * np.cos(y / 5)[..., None]
    assert (drawn[3].empty.permute(1, 2, 0).numpy() - table).mean() == pytest.approx(0, abs=1)


def test_looks_of_other_scenes_are_refused():
    hands, _, _ = scenes(60, 1, hand=True)
    robots, known, _ = scenes(200, 2, hand=False)
    with pytest.raises(DataError, match="same camera"):
        Redrawer(hands.flip(3).transpose(2, 3), robots, known, list(range(200)), RedrawConfig())
    noise = torch.randint(0, 255, robots.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="stands still"):
        Redrawer(noise[:60], robots, known, list(range(200)), RedrawConfig())


def test_frames_of_one_clip_do_not_outvote_others():
    hands, states, things = scenes(20, 1, hand=True)
    robots, known, _ = scenes(400, 2, hand=False)
    # A clip in which the robot stands still at the wanted place, beside its object, for long.
    at = np.repeat(states[:1], 300, axis=0)
    beside = things[0] + np.where(things[0] < 24, 14, -14)
    still = np.stack([scene(states[0], beside, hand=False)] * 300).clip(0, 255).astype(np.uint8)
    frames = torch.cat([robots, torch.from_numpy(still).permute(0, 3, 1, 2)])
    clips = [*range(400), *[400] * 300]
    redrawer = Redrawer(hands, frames, np.concatenate([known, at]), clips, RedrawConfig())
    found = redrawer.redraw(hands[:1], states[:1])[0]
    x, y = beside.round().astype(int)
    assert not (found[2, y, x] > 150 and found[0, y, x] < 80)


def test_settings_out_of_range_are_refused():
    for name, value in {"neighbours": 0, "support": 1.5, "threshold": 0, "ratio": 0.5, "bank_mb": 0, "crf": 60}.items():
        with pytest.raises(ValueError, match=name):
            RedrawConfig(**{name: value})


def drawing(corpus, models, **options):
    shards, _ = corpus
    given = {"demos": shards["demos"], "robot_videos": shards["robot"]}
    told = {"robot": str(models / "robot"), "points": str(models / "points")}
    return redraw(options.pop("hands", shards["hands"]), **{**given, **told, **options})


@pytest.fixture(scope="module")
def folder(corpus, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("redrawn") / "videos"
    return out, drawing(corpus, models, out=str(out))


def test_redrawn_videos_are_labelled_as_the_robots_own(corpus, models, folder, tmp_path):
    _, hands = corpus
    out, result = folder
    assert (result.videos, result.skipped_done, result.quarantined) == (50, 0, {})
    assert result.frames == sum(len(hand) for hand in hands)
    scan("folder", str(out), out=str(tmp_path / "clips.parquet"), val_share=0.0, embodiment="sprite")
    pack(str(tmp_path / "clips.parquet"), out=str(tmp_path / "shards"), size_px=sprites.SIDE)
    label(str(tmp_path / "shards"), labeler="idm", model=str(models / "robot"), out=str(tmp_path / "labels"))
    names = {row["key"]: Path(row["clip_id"].partition("#")[0]).stem for row in ShardSet.open(tmp_path / "shards").rows}
    truth = {hand.key: hand.action for hand in hands}
    rows = pq.read_table(tmp_path / "labels" / "clips-000000.parquet").to_pandas()
    said = np.stack(rows["action"])
    meant = np.stack([truth[names[key]][frame] for key, frame in zip(rows["key"], rows["frame"], strict=True)])
    for axis in (0, 1):
        assert np.corrcoef(said[:, axis], meant[:, axis])[0, 1] > 0.6


def test_what_is_done_is_kept_and_what_is_lost_is_drawn_again(corpus, models, folder):
    out, first = folder
    captions = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in captions) == sorted(path.name for path in out.glob("*.mp4"))
    before = {path.name: path.read_bytes() for path in out.glob("*.mp4")}
    again = drawing(corpus, models, out=str(out))
    assert (again.skipped_done, again.frames) == (first.clips, first.frames)
    lost = sorted(before)[7]
    (out / lost).unlink()
    assert drawing(corpus, models, out=str(out)).skipped_done == first.clips - 1
    assert {path.name: path.read_bytes() for path in out.glob("*.mp4")} == before
    plan = drawing(corpus, models, out=str(out), dry_run=True)
    assert (plan.clips, plan.skipped_done, plan.videos) == (50, 50, 0)


def test_a_limit_changes_no_picture(corpus, models, folder, tmp_path):
    assert drawing(corpus, models, out=str(tmp_path), limit=2).videos == 2
    for path in tmp_path.glob("*.mp4"):
        assert path.read_bytes() == (folder[0] / path.name).read_bytes()


def test_another_drawing_does_not_share_a_folder(corpus, models, folder, tmp_path):
    with pytest.raises(ConfigError, match="something else"):
        drawing(corpus, models, out=str(folder[0]), threshold=30)
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="not drawn here"):
        drawing(corpus, models, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_what_cannot_be_drawn_is_refused_by_name(corpus, models, tmp_path):
    for options, words in [({"robot": ""}, "--robot"), ({"points": ""}, "--points"), ({"demos": ()}, "--demos")]:
        with pytest.raises(ConfigError, match=words):
            drawing(corpus, models, out=str(tmp_path / "x"), **options)
    with pytest.raises(ConfigError, match="--out"):
        drawing(corpus, models)
    few = sprites.write_shards(tmp_path / "few", silent(errand(n, hand=True, embodiment="human") for n in range(3)))
    with pytest.raises(DataError, match="3 clips to match"):
        drawing(corpus, models, out=str(tmp_path / "x"), hands=few)
    assert not (tmp_path / "x").exists()
    elsewhere = [
        replace(sprites.make_sample(n, background_of=70 + n, errand=True, hand=True, embodiment="human"), action=None)
        for n in range(300, 312)
    ]
    other = sprites.write_shards(tmp_path / "other", [replace(sample, state=None) for sample in elsewhere])
    with pytest.raises(DataError, match="same camera"):
        drawing(corpus, models, out=str(tmp_path / "x"), hands=other)
    assert not list((tmp_path / "x").glob("*.mp4"))


def test_clips_at_another_rate_are_set_aside(corpus, models, tmp_path):
    hands = [errand(n, hand=True, embodiment="human") for n in range(200, 212)]
    slow = [errand(n, hand=True, embodiment="human", rate_hz=33.0) for n in range(300, 302)]
    mixed = sprites.write_shards(tmp_path / "mixed", silent([*hands, *slow]))
    result = drawing(corpus, models, out=str(tmp_path / "out"), hands=mixed)
    assert (result.videos, result.quarantined) == (12, {"rate": 2})
    assert all("80 Hz" in item.detail for item in result.items)
