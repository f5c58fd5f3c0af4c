"""Options of training a latent-action model: each does what it says, seen in batches, losses and labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import sprites
import tiny_hub
import torch
from lam_variants import SMALL, features_of, made

from lam.config import LAMConfig, ObjectiveConfig, TextConfig
from lam.evaluate import evaluate_lam
from lam.flow import FlowTarget
from lam.label import load
from lam.losses import measured_terms
from lam.pairs import label_pairs
from lam.prepare import Frames, focus_of, prepare
from lam.run import load_model
from lam.signals import labelled_clips
from lam.text import TextEmbedder
from lam.train import train_lam
from lam.views import Context
from pyramid import files, parquet
from pyramid.config import dump_yaml, resolve
from pyramid.errors import ConfigError, DataError
from pyramid.labels.engine import label
from pyramid.mixture.batch import open_mixture
from pyramid.rng import torch_generator
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import ShardSet

# Labelled pairs


def test_few_episodes_lend_their_actions_always_the_same(shards):
    clips = ClipFrames.open(shards, split="train", size_px=32)
    lent = labelled_clips(clips, 0.25, seed=0)
    assert len(lent) == 2
    assert labelled_clips(clips, 0.025, seed=0)[0] in lent  # at least one, and a larger share only adds
    assert labelled_clips(clips, 0.25, seed=0) == lent
    assert len({tuple(labelled_clips(clips, 0.25, seed=s)) for s in range(8)}) > 3


def test_only_lent_actions_reach_the_loss_and_they_are_true(shards):
    module, sampler, sources = made(shards, **{"objectives.action_weight": 0.5, "objectives.action_rows": 6})
    batch = sampler.batch_at(0)
    assert len(batch.first) == 8 + 6
    assert batch.action.known[8:].all()
    lent = sampler.signals.labelled
    drawn = [sampler.draw("train", 0, place)[0] for place in range(8)]
    assert batch.action.known[:8].tolist() == [clip in lent for clip in drawn]
    means = []
    for clip in lent:
        sample = sampler.clips.sample(clip)
        means += [sample.action[p.first : p.second].mean(0) for p in label_pairs(sample.times_s, 0.1, None)]
    assert np.allclose(sources.facts.actions["sprite"]["mean"], np.mean(means, 0), atol=1e-5)
    head = module.model.action_head
    z = head.z_scored(batch.action.values, batch.action.embodiment)
    exact = (batch.action.values[8:] - torch.tensor(np.mean(means, 0), dtype=torch.float32))[:, 0] / np.std(means, 0)[0]
    assert torch.allclose(z[8:, 0], exact, atol=1e-4)


def test_action_loss_trains_the_encoder_and_makes_actions_readable(shards):
    module, sampler, _ = made(shards, **{"objectives.action_weight": 0.5, "quantizer.kind": "none"})
    first = None
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for step in range(40):
        loss, logs = module.loss(sampler.batch_at(step), torch_generator(0, step))
        first = first or float(logs["loss_action"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(logs["loss_action"]) < 0.5 * first
    batch = sampler.batch_at(50)
    frames = prepare(ObjectiveConfig(), batch.first, batch.second)
    output = module.model(module.model.look(frames.first), module.model.look(frames.second), Context())
    term = measured_terms(module.model, output, batch)["action"]
    assert torch.autograd.grad(term, module.model.encoder.heads[0].weight)[0].any()


def test_labels_tell_the_actions_of_a_model_that_knows_some(shards, tmp_path):
    """In units of the robot, for clips without any too; a mixture takes them for pseudo-actions."""
    settings = {"objectives.action_weight": 1.0, "objectives.action_share": 0.5, "trainer.max_steps": 40}
    train_lam([shards], out=str(tmp_path / "model"), **{**SMALL, **settings})
    labeler = load(str(tmp_path / "model"))
    head, clips = labeler.model.action_head, ShardSet.open(shards)
    sample = clips.read(0)
    [table] = labeler.label([sample])
    latent = torch.tensor(table["latent"].to_pylist())
    z = torch.nn.functional.linear(latent, head.linear.weight, head.linear.bias).detach().numpy()
    facts = labeler.model.facts.actions["sprite"]
    said = np.array(table["action"].to_pylist())
    assert said.shape == (len(table), sample.action.shape[1])
    assert np.allclose(said, z[:, : said.shape[1]] * facts["std"] + facts["mean"], atol=1e-5)
    true = [sample.action[p.first : p.second].mean(0) for p in label_pairs(sample.times_s, 0.1, None)]
    assert np.abs(said - true).mean() < np.abs(facts["mean"] - np.array(true)).mean()
    [other] = labeler.label([replace(sample, meta={**sample.meta, "embodiment": "human"}, action=None)])
    assert other["action"].to_pylist() == table["action"].to_pylist()
    with pytest.raises(KeyError):
        head.decode(latent, "human")

    label(shards, labeler="lam", model=str(tmp_path / "model"), out=str(tmp_path / "labels"))
    source = {"shards": shards, "use": "pseudo", "labels": str(tmp_path / "labels"), "embodiment": "told"}
    tiers = {"top": {"weight": 1.0, "sources": {"videos": source}}}
    files.write_text(str(tmp_path / "mixture.yaml"), dump_yaml({"horizon": 3, "seed": 0, "tiers": tiers}))
    stream = open_mixture(str(tmp_path / "mixture.yaml"), batch_size=4, image_size=32)
    [group] = stream.batch(0)
    assert stream.embodiments["told"].label == "pseudo"
    assert (group.embodiment, group.action.shape) == ("told", (4, 3, said.shape[1]))
    assert np.isfinite(group.action.numpy()).all()


def test_a_body_that_none_of_several_robots_is_gets_no_actions_and_all_else(shards, tmp_path):
    """Nobody can say in whose units: its latents are labelled, and pseudo-actions are refused by name."""
    settings = {**SMALL, "objectives.action_weight": 1.0, "objectives.action_share": 1.0, "trainer.max_steps": 2}
    robots = sprites.write_shards(
        tmp_path / "robots", [sprites.make_sample(i, n_frames=20, embodiment=f"robot_{i % 2}") for i in range(4)]
    )
    train_lam([robots], out=str(tmp_path / "model"), **settings)
    assert load(str(tmp_path / "model")).model.action_head.names == ["robot_0", "robot_1"]
    result = label(shards, labeler="lam", model=str(tmp_path / "model"), out=str(tmp_path / "labels"))
    assert (result.quarantined, result.rows > 0) == ({}, True)
    source = {"shards": shards, "use": "pseudo", "labels": str(tmp_path / "labels")}
    tiers = {"top": {"weight": 1.0, "sources": {"videos": source}}}
    files.write_text(str(tmp_path / "mixture.yaml"), dump_yaml({"horizon": 3, "seed": 0, "tiers": tiers}))
    with pytest.raises(DataError, match=r"source 'videos'.*column 'action': no values"):
        open_mixture(str(tmp_path / "mixture.yaml"), batch_size=4, image_size=32)


def test_actions_told_at_another_rate_are_read_at_it(shards, tmp_path):
    settings = {**SMALL, "objectives.action_weight": 1.0, "pairs.label_hz": 10.0, "trainer.max_steps": 2}
    train_lam([shards], out=str(tmp_path / "model"), **settings)
    label(shards, labeler="lam", model=str(tmp_path / "model"), out=str(tmp_path / "labels"))
    source = {"shards": shards, "use": "pseudo", "labels": str(tmp_path / "labels"), "embodiment": "told"}
    tiers = {"top": {"weight": 1.0, "sources": {"videos": source}}}
    files.write_text(str(tmp_path / "mixture.yaml"), dump_yaml({"horizon": 3, "seed": 0, "tiers": tiers}))
    stream = open_mixture(str(tmp_path / "mixture.yaml"), batch_size=4, image_size=32)
    assert stream.embodiments["told"].rate_hz == 10.0


def test_without_a_head_there_are_no_actions_in_the_labels(model_dir, shards):
    assert "action" not in load(model_dir).label([ShardSet.open(shards).read(0)])[0].column_names


def test_without_actions_the_weight_is_refused_by_name(tmp_path):
    samples = [sprites.make_sample(i, n_frames=16) for i in range(2)]
    folder = sprites.write_shards(tmp_path, [replace(s, action=None, state=None) for s in samples])
    for name in ("action", "proprio"):
        with pytest.raises(DataError, match=f"no training clip has {'actions' if name == 'action' else 'states'}"):
            made(folder, **{f"objectives.{name}_weight": 1.0})


# Proprioception


def test_proprio_term_is_the_change_of_state(shards):
    module, sampler, sources = made(shards, **{"objectives.proprio_weight": 2.0, "quantizer.kind": "none"})
    batch = sampler.batch_at(0)
    assert batch.state.known.all()
    clip, pair, _ = sampler.draw("train", 0, 3)
    state = sampler.clips.sample(clip).state
    assert torch.equal(batch.state.values[3], torch.tensor(state[pair.first]))
    assert torch.equal(batch.later.values[3], torch.tensor(state[pair.second]))
    head = module.model.proprio_head
    torch.nn.init.zeros_(head.mlp[2].weight)
    torch.nn.init.zeros_(head.mlp[2].bias)
    change = (batch.later.values - batch.state.values) / torch.tensor(sources.facts.states["sprite"]["std"])
    _, logs = module.loss(batch, torch_generator(0))
    assert float(logs["loss_proprio"]) == pytest.approx(2 * float(change.square().mean()), rel=1e-4)
    torch.nn.init.normal_(head.mlp[2].weight)
    frames = prepare(ObjectiveConfig(), batch.first, batch.second)
    output = module.model(module.model.look(frames.first), module.model.look(frames.second), Context())
    term = measured_terms(module.model, output, batch)["proprio"]
    assert torch.autograd.grad(term, module.model.encoder.heads[0].weight)[0].any()


# Flow


def test_flow_target_is_raft_on_the_targets_map(tmp_path):
    from torchvision.models.optical_flow import raft_small

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        raft = raft_small(weights=None).eval()
    torch.save(raft.state_dict(), tmp_path / "raft.pth")
    config = ObjectiveConfig(flow_weight=0.1, flow_weights=str(tmp_path / "raft.pth"))
    target = FlowTarget(config).train()
    first, second = torch.rand(2, 1, 3, 128, 128)
    flow = target(first, second, 4)
    with torch.no_grad():
        whole = raft(2 * first - 1, 2 * second - 1, num_flow_updates=12)[-1]
    assert torch.allclose(flow[0, 1, 2, 3], whole[0, 1, 64:96, 96:128].mean() / 128, atol=1e-5)
    assert float(flow.abs().max()) > 0
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="holds no weights of raft_small"):
        FlowTarget(replace(config, flow_weights=str(tmp_path / "other.pth")))


def test_flow_is_a_term_of_the_loss(shards, tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    options = {
        "objectives.flow_weight": 0.1,
        "objectives.flow_weights": str(tmp_path / "raft.pth"),
        "model.image_size_px": 128,
        "trainer.batch_size": 2,
    }
    module, sampler, _ = made(shards, **options)
    _, logs = module.loss(sampler.batch_at(0), torch_generator(0))
    assert float(logs["loss_flow"]) == pytest.approx(0.1, rel=1e-2)  # nothing predicted yet: the error of no flow
    assert not any("raft" in name for name in module.model.state_dict())


# Focus


def test_focus_by_motion_is_where_something_moves():
    first = torch.zeros(1, 3, 64, 64)
    second = first.clone()
    second[..., 40:48, 8:16] = 1
    focus = focus_of(ObjectiveConfig(focus="motion", focus_floor=0.2), Frames(first, second, None), None)
    assert float(focus.max()) == pytest.approx(1)
    assert float(focus[0, 0, 44, 12]) > 0.9
    assert float(focus[0, 0, 5, 50]) == pytest.approx(0.2)
    assert focus_of(ObjectiveConfig(), Frames(first, second, None), None) is None


def test_focus_by_boxes_of_a_table(shards, tmp_path):
    key = ShardSet.open(shards).rows[0]["key"]
    rows = [{"key": key, "frame": f, "x0": 0.25, "y0": 0.5, "x1": 0.5, "y1": 1.0 - f / 100} for f in range(32)]
    parquet.write(tmp_path / "boxes.parquet", pa.Table.from_pylist(rows))
    options = {"objectives.focus": "boxes", "objectives.focus_boxes": str(tmp_path / "boxes.parquet")}
    module, sampler, _ = made(shards, **options)
    batch = sampler.batch_at(0)
    drawn = [sampler.draw("train", 0, place)[:2] for place in range(8)]
    for box, (clip, pair) in zip(batch.boxes, drawn, strict=True):
        if clip == 0:
            assert box.tolist() == pytest.approx([0.25, 0.5, 0.5, 1.0 - pair.first / 100])
        else:
            assert box.isnan().all()
    assert 0 in [clip for clip, _ in drawn]
    frames = prepare(ObjectiveConfig(), batch.first, batch.second)
    focus = focus_of(
        module.model.config.objectives, frames, torch.tensor([[0.25, 0.5, 0.5, 1.0]] * 7 + [[math.nan] * 4])
    )
    assert focus[0, 0, 20, 10] == 1
    assert focus[0, 0, 20, 20] == focus[0, 0, 4, 10] == pytest.approx(0.1)
    assert float(focus[0].gt(0.5).float().mean()) == pytest.approx(1 / 8)
    assert focus[7].min() == 1
    parquet.write(tmp_path / "less.parquet", pa.Table.from_pylist([{"key": "a", "frame": 1}]))
    with pytest.raises(DataError, match="x0, y0"):
        made(shards, **{**options, "objectives.focus_boxes": str(tmp_path / "less.parquet")})


def test_focus_is_what_the_loss_counts(shards):
    module, sampler, _ = made(shards, **{"objectives.focus": "motion", "objectives.focus_floor": 0.0})
    plain, _, _ = made(shards)
    plain.load_state_dict(module.state_dict())
    for one in (module, plain):
        torch.manual_seed(0)
        torch.nn.init.normal_(one.model.decoder.out.weight, std=0.3)
    batch = sampler.batch_at(0)
    losses = []
    for one in (module, plain):
        torch.manual_seed(0)
        losses.append(float(one.loss(batch, torch_generator(0))[1]["loss_prediction"]))
    # Random paint all over the picture: most of it lies where nothing moves, and counts for nothing there.
    assert losses[0] < 0.5 * losses[1]


# Instructions and the second stage


def test_instructions_are_read_by_the_frozen_text_model(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_hub.save_text(tmp_path)
    embedder = TextEmbedder(TextConfig(text_model=folder, max_tokens=6))
    tokens, mask = embedder.embed(["push the button", "pull", "push the button"])
    assert tokens.shape == (3, 6, 12)
    assert mask.sum(1).tolist() == [3, 1, 3]
    assert torch.equal(tokens[0], tokens[2])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = model.get_encoder()(**tokenizer("push the button", return_tensors="pt")).last_hidden_state
    assert torch.allclose(tokens[0, :3], alone[0, :3], atol=1e-5)
    with pytest.raises(ConfigError, match="nowhere"):
        TextEmbedder(TextConfig(text_model=str(tmp_path / "nowhere")))


def test_two_stages_end_to_end(shards, tmp_path):
    features = features_of(tmp_path)
    text = {"text.text_model": tiny_hub.save_text(tmp_path / "text"), "text.max_tokens": 4}
    first, second = str(tmp_path / "stage1"), str(tmp_path / "stage2")
    common = {**SMALL, **features, "model.encoder_input": "features", "trainer.max_steps": 3, "model.n_tokens": 2}
    train_lam(shards, out=first, **common, **text, **{"quantizer.kind": "vq_grad", "quantizer.code_dim": 8})
    train_lam(shards, out=second, **{**common, "stage1": first, "quantizer.code_dim": 4, "model.n_tokens": 3})
    one, other = load_model(first)[0], load_model(second)[0]
    frozen = other.background.quantizer.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in one.quantizer.state_dict().items())
    sample = ShardSet.open(shards).read(0)
    for folder, width, codes in ((first, 16, 2), (second, 12, 3)):
        (table,) = load(folder).label([sample])
        assert len(table["latent"][0]) == width
        assert len(table["codes"][0]) == codes
    assert evaluate_lam(shards, model=second, n_pairs=40).pairs == 40
    with pytest.raises(ConfigError, match="without instructions"):
        resolve(LAMConfig, "lam/tiny", **{**common, **text, "stage1": first})


def test_a_continuous_first_stage_is_refused(shards, tmp_path):
    train_lam(shards, out=str(tmp_path), **{**SMALL, "trainer.max_steps": 1, "quantizer.kind": "none"})
    with pytest.raises(DataError, match="continuous bottleneck"):
        train_lam(shards, out=str(tmp_path / "b"), **{**SMALL, "stage1": str(tmp_path)})


# Every variant can be trained, saved, labelled with and evaluated


@pytest.mark.parametrize("kind", ["residual_vq", *(pytest.param(k, marks=pytest.mark.slow) for k in ("vae", "lfq"))])
def test_labels_of_every_width(shards, tmp_path, kind):
    train_lam(shards, out=str(tmp_path), **{**SMALL, "trainer.max_steps": 2, "quantizer.kind": kind})
    (table,) = load(str(tmp_path)).label([ShardSet.open(shards).read(0)])
    wide = {"residual_vq": 8, "vae": 4, "lfq": 4}[kind]
    assert table.schema.field("codes").type == pa.list_(pa.uint16(), wide)
    assert table["codes"].null_count == (24 if kind == "vae" else 0)
    evaluation = evaluate_lam(shards, model=str(tmp_path), n_pairs=40)
    assert (evaluation.perplexity is None) == (kind == "vae")
    assert kind == "vae" or len(evaluation.perplexity) == wide


def test_a_feature_model_needs_nothing_but_its_folder(shards, tmp_path):
    import shutil

    options = features_of(tmp_path)
    out = str(tmp_path / "model")
    train_lam(shards, out=out, **{**SMALL, **options, "trainer.max_steps": 2, "model.gap_embedding": True})
    sample = ShardSet.open(shards).read(0)
    (before,) = load(out).label([sample])
    shutil.rmtree(options["target.vision_model"])
    (after,) = load(out).label([sample])
    assert after.equals(before)


@pytest.mark.parametrize("kind", ["residual_vq", "none"])
def test_a_policy_gets_whole_tokens_whatever_codes_they_have(kind, tmp_path):
    from pyramid.labels.engine import label
    from pyramid.mixture.batch import open_mixture

    videos = sprites.make_shards(tmp_path, n_train=2, n_val=0, n_frames=16)
    options = {**SMALL, "trainer.max_steps": 1, "quantizer.kind": kind, "quantizer.stages": 3}
    train_lam(videos, out=str(tmp_path / "model"), **options)
    labels = str(tmp_path / "labels")
    label(videos, labeler="lam", model=str(tmp_path / "model"), out=labels)
    source = {"shards": videos, "use": "latent", "labels": labels}
    spec = {"tiers": {"base": {"weight": 1.0, "sources": {"human": source}}}, "horizon": 4, "seed": 0}
    (tmp_path / "mix.yaml").write_text(dump_yaml(spec))
    stream = open_mixture(str(tmp_path / "mix.yaml"), batch_size=2, image_size=32)
    (embodiment,) = stream.embodiments.values()
    assert (embodiment.horizon, embodiment.action_dim) == (4, 16)
