"""The action head against weights, inputs and outputs that the publishers' own code computed at small sizes.

Each file of tests/reference holds `param.*`, `input.*` and `output.*` of one published head, with random weights.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pyramid.nn.flow import euler_sample, interpolate, masked_mean, time_bucket
from pyramid.types import Embodiment
from vla.action_head import build_action_head
from vla.config import HeadConfig

FOLDER = Path(__file__).parents[1] / "reference"
BLOCK = {
    "norm1.linear": "modulation",
    "norm1": "attention_norm",
    "norm3": "feed_forward_norm",
    "attn1.to_q": "attention.query",
    "attn1.to_k": "attention.key",
    "attn1.to_v": "attention.value",
    "attn1.to_out.0": "attention.out",
    "ff.net.0.proj": "feed_forward.expand",
    "ff.net.2": "feed_forward.contract",
}
OUTER = {
    "model.timestep_encoder.timestep_embedder.linear_1": "dit.time_embedding.first",
    "model.timestep_encoder.timestep_embedder.linear_2": "dit.time_embedding.second",
    "model.proj_out_1": "dit.out_modulation",
    "model.proj_out_2": "dit.out",
    "vlln": "context_norm",
}
SLOTS = {
    "state_encoder.layer1": "state_encoder.slots.for_e{}.0",
    "state_encoder.layer2": "state_encoder.slots.for_e{}.2",
    "action_decoder.layer1": "action_decoder.slots.for_e{}.0",
    "action_decoder.layer2": "action_decoder.slots.for_e{}.2",
    "action_encoder.W1": "action_encoder.slots.for_e{}.embed",
    "action_encoder.W2": "action_encoder.slots.for_e{}.mix",
    "action_encoder.W3": "action_encoder.slots.for_e{}.out",
}


def renamed(name):
    stem, kind = name.rsplit(".", 1)
    for prefix, ours in (("model.", "dit."), ("vl_self_attention.", "context_mixer.")):
        if stem.startswith(f"{prefix}transformer_blocks."):
            _, _, index, rest = stem.split(".", 3)
            return f"{ours}blocks.{index}.{BLOCK[rest]}.{kind}"
    return f"{OUTER[stem]}.{kind}"


def weights(tensors, n):
    """Maps the published names and layouts (W[id] is [in, out]) to ours."""
    ours = {"position": tensors["position_embedding.weight"]}
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        if stem in SLOTS:
            for i in range(n):
                ours[SLOTS[stem].format(i) + (".weight" if kind == "W" else ".bias")] = (
                    tensor[i].T if kind == "W" else tensor[i]
                )
        elif name != "position_embedding.weight":
            ours[renamed(name)] = tensor
    return ours


def load(file):
    with safe_open(FOLDER / file, "pt") as handle:
        note = json.loads(handle.metadata()["json"])
        parts = {"param": {}, "input": {}, "output": {}}
        for key in handle.keys():  # noqa: SIM118
            part, name = key.split(".", 1)
            parts[part][name] = handle.get_tensor(key)
    return note["config"], parts["param"], parts["input"], parts["output"]


def build(config, params):
    dit, mixer = (
        config["diffusion_model_cfg"],
        config.get("vl_self_attention_cfg", {"num_layers": 0, "num_attention_heads": 1}),
    )
    n = config["max_num_embodiments"]
    state_dim = params["state_encoder.layer1.W"].shape[1]
    bodies = {
        f"e{i}": Embodiment(
            name=f"e{i}",
            state_dim=state_dim,
            action_dim=config["max_action_dim"],
            horizon=config["action_horizon"],
            rate_hz=1,
        )
        for i in range(n)
    }
    head_config = HeadConfig(
        width=config["input_embedding_dim"],
        layers=dit["num_layers"],
        heads=dit["num_attention_heads"],
        hidden=config["hidden_size"],
        context_norm="vlln.weight" in params,
        context_layers=mixer["num_layers"],
        context_heads=mixer["num_attention_heads"],
        max_horizon=config["max_seq_len"],
        sample_steps=config["num_inference_timesteps"],
    )
    head = build_action_head(head_config, config["backbone_embedding_dim"], bodies).eval()
    ours = {**weights(params, n), "unknown_state": head.unknown_state}
    head.load_state_dict(ours)
    return head


@pytest.mark.parametrize(
    ("file", "eps"),
    [("gr00t_n1_action_head.safetensors", 0.0), ("gr00t_n1_7_action_head_plain_dit.safetensors", 1e-6)],
)
@torch.no_grad()
def test_loss_and_sample_match_the_published_head(file, eps):
    config, params, inputs, outputs = load(file)
    head = build(config, params)
    # These versions attend to padded vision-language tokens as well.
    context = inputs["backbone_features"]
    everything = torch.ones(context.shape[:2], dtype=torch.bool)
    mixed = head.context_mixer(head.context_norm(context))
    assert (mixed - outputs["processed_backbone_features"]).abs().max() < 1e-5
    x, target = interpolate(inputs["action"], inputs["noise"], inputs["time"])
    predicted, sampled = [], []
    for row, index in enumerate(inputs["embodiment_id"].tolist()):  # the published batch mixes embodiments, ours do not
        name, one = f"e{index}", slice(row, row + 1)
        state = inputs["state"][one].flatten(1)
        prepared = head.prepare(context[one], everything[one], state, None, name)
        predicted.append(head.velocity(x[one], time_bucket(inputs["time"][one]), prepared, name))
        sampled.append(head.sample(prepared, inputs["noise"][one], name))
    loss = masked_mean(torch.cat(predicted), target, inputs["action_mask"], eps)
    assert abs(loss - outputs["loss"]) < 1e-5
    assert (torch.cat(sampled) - outputs["action_pred"]).abs().max() < 1e-5


def test_the_reference_pins_the_number_of_steps():
    config, params, inputs, outputs = load("gr00t_n1_action_head.safetensors")
    head = build(config, params)
    context = inputs["backbone_features"][:1]
    name = f"e{inputs['embodiment_id'][0]}"
    prepared = head.prepare(
        context, torch.ones(context.shape[:2], dtype=torch.bool), inputs["state"][:1, 0], None, name
    )
    other = euler_sample(lambda x, b: head.velocity(x, b, prepared, name), inputs["noise"][:1], 5)
    assert (other - outputs["action_pred"][:1]).abs().max() > 1e-3
