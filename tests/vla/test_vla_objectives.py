"""Each term of the loss moves the parameters that it should and no others; what stands still is bit-identical."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_policy import TINY, make_bodies, make_group

from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import Group
from vla.config import PolicyConfig
from vla.objectives.config import FlareConfig, ObjectivesConfig, TokensConfig, WeightsConfig
from vla.objectives.flow import draw
from vla.objectives.total import Objectives
from vla.objectives.trunk import run_trunk
from vla.objectives.weights import confidence
from vla.policy import Policy, build_policy

LAYER = 2
FLARE = FlareConfig(weight=0.2, layer=LAYER, grid=2)
QFORMER = replace(FLARE, target="qformer", qformer_width=16, qformer_heads=2, qformer_layers=1)
WITH_FUTURE = replace(TINY, head=replace(TINY.head, future_tokens=4))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ahead(group: Group, seed: int = 5) -> Group:
    """The group with later views, unknown of the last sample."""
    future = torch.randint(0, 256, group.images.shape, generator=generator(seed), dtype=torch.uint8)
    known = torch.ones(len(future), dtype=torch.bool)
    known[-1] = False
    return replace(group, future=future, future_known=known)


def video(n: int = 4) -> Group:
    """Clips without any action."""
    group = make_group(make_bodies(), "human_latent", n, 7)
    empty = torch.zeros(n, 1, 0)
    return ahead(replace(group, embodiment="human_video", action=empty, mask=empty.bool(), source=("human_video",) * n))


def with_codes(group: Group, high: int = 8) -> Group:
    return replace(group, codes=torch.randint(0, high, (len(group.key), 4), generator=generator(1)))


def policy_of(config: PolicyConfig = WITH_FUTURE, *, frozen: bool = False) -> Policy:
    config = replace(config, backbone=replace(config.backbone, frozen=frozen))
    return build_policy(config, make_bodies(), seed=3).train()


def moved(policy: Policy, objectives: Objectives, batch: list[Group]) -> set[str]:
    """Names of the parts that one pass gives a gradient other than 0."""
    loss, _ = objectives.loss(policy, batch, generator())
    both = torch.nn.ModuleDict({"policy": policy, "objectives": objectives})
    both.zero_grad()
    loss.backward()
    return {name for name, p in both.named_parameters() if p.grad is not None and bool(p.grad.any())}


def starts(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def test_clips_without_actions_train_the_trunk_and_nothing_that_knows_actions() -> None:
    policy = policy_of()
    names = moved(policy, Objectives(ObjectivesConfig(flare=FLARE), policy), [video()])
    for part in ("backbone.model.vision_tower", "backbone.model.language_model", "head.dit.time_embedding"):
        assert starts(names, f"policy.{part}"), part
    for block in range(LAYER):
        assert starts(names, f"policy.head.dit.blocks.{block}.attention.query")
    assert {"policy.head.future", "policy.head.unknown_state", "policy.head.context_norm.weight"} <= names
    assert starts(names, "objectives.flare.projector")
    beyond = [f"policy.head.dit.blocks.{n}." for n in range(LAYER, TINY.head.layers)]
    knows = ("action_encoder", "action_decoder", "state_encoder", "position", "dit.out")
    assert not starts(names, *beyond, *(f"policy.head.{part}" for part in knows), "objectives.flare.tower")


def test_flow_matching_alone_moves_no_projector_and_foreseeing_no_decoder() -> None:
    policy, arm = policy_of(), ahead(make_group(make_bodies(), "arm", 4, 0))
    objectives = Objectives(ObjectivesConfig(flare=FLARE), policy)
    both = moved(policy, objectives, [arm])
    silent = replace(arm, future_known=torch.zeros(4, dtype=torch.bool))
    flow = moved(policy, objectives, [silent])
    blind = moved(policy, objectives, [replace(arm, mask=torch.zeros_like(arm.mask))])
    assert not starts(flow, "objectives")
    assert starts(flow, "policy.head.action_decoder.slots.for_arm", "policy.head.dit.blocks.3.")
    assert not starts(flow, "policy.head.action_decoder.slots.for_human_latent")
    assert starts(blind, "objectives.flare.projector")
    assert not starts(blind, "policy.head.action_", "policy.head.dit.blocks.3.")
    assert both == flow | blind


def test_hidden_action_tokens_are_as_good_as_none() -> None:
    policy, group = policy_of().eval(), make_group(make_bodies(), "arm", 3, 0)
    blind = replace(group, mask=torch.zeros_like(group.mask), state_known=torch.zeros(3, dtype=torch.bool))
    encoded, clip = policy.encode(group.images, group.text), video(3)
    with torch.no_grad():
        bare = draw(policy, clip, encoded, generator()).tokens
        hidden = replace(draw(policy, blind, encoded, generator()).tokens, bucket=bare.bucket)
        (alone,) = run_trunk(policy, [bare], LAYER)
        both = run_trunk(policy, [hidden, bare], LAYER)
    assert alone.future.shape == (3, 4, 32)
    assert alone.hidden.shape == (3, 0, TINY.head.hidden)
    for each in both:
        assert torch.allclose(each.future, alone.future, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_targets_and_frozen_parts_stand_still_to_the_bit(frozen: bool) -> None:
    policy = policy_of(frozen=frozen)
    objectives = Objectives(ObjectivesConfig(flare=FLARE), policy)
    assert (objectives.flare.tower.copied is None) == frozen
    future = video().future
    before, want = {n: t.clone() for n, t in policy.state_dict().items()}, objectives.flare.target(future)
    trained = [*policy.parameters(), *objectives.parameters()]
    optimiser = torch.optim.AdamW([p for p in trained if p.requires_grad], lr=1e-2)
    for step in range(3):
        optimiser.zero_grad()
        objectives.loss(policy, [ahead(make_group(make_bodies(), "arm", 4, step)), video()], generator(step))[
            0
        ].backward()
        optimiser.step()
    assert torch.equal(objectives.flare.target(future), want)
    after = policy.state_dict()
    backbone = [
        torch.equal(before[n], after[n]) for n in before if n.startswith("backbone.model.language_model.layers")
    ]
    assert backbone
    assert all(backbone) == frozen
    assert not torch.equal(before["head.future"], after["head.future"])
    assert not any(
        name.startswith("flare.tower.copied.model.language_model.layers") for name in objectives.state_dict()
    )


def test_foreseeing_is_learned() -> None:
    policy = policy_of(frozen=True)
    objectives, group = Objectives(ObjectivesConfig(flare=replace(FLARE, weight=1.0)), policy), video(8)
    trained = [p for p in (*policy.parameters(), *objectives.parameters()) if p.requires_grad]
    optimiser, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for step in range(25):
        optimiser.zero_grad()
        loss, logs = objectives.loss(policy, [group], generator(step))
        loss.backward()
        optimiser.step()
        losses.append(logs["loss_future"])
    assert losses[-1] < 0.5 * losses[0]
    assert 0 <= losses[-1] <= 2
    assert logs["future_source/human_video"] == pytest.approx(logs["loss_future"], rel=1e-5)
    assert logs["share/human_video"] == 1.0


def test_a_learned_target_is_taught_by_actions_alone_and_followed_by_its_average() -> None:
    policy = policy_of()
    objectives = Objectives(ObjectivesConfig(flare=QFORMER), policy)
    seen = moved(policy, objectives, [video()])
    assert starts(seen, "objectives.flare.projector")
    assert not starts(seen, "objectives.flare.aware")
    taught = moved(policy, objectives, [ahead(make_group(make_bodies(), "arm", 4, 0))])
    assert starts(taught, "objectives.flare.aware.online.queries")
    assert starts(taught, "objectives.flare.aware.teacher.action_decoder.slots.for_arm")
    assert not starts(taught, "objectives.flare.aware.average", "objectives.flare.tower")
    only = replace(ahead(make_group(make_bodies(), "arm", 4, 0)), future_known=torch.zeros(4, dtype=torch.bool))
    # The teaching term alone leaves the policy where it is.
    error, count = objectives.flare.teach(policy, only, generator())
    policy.zero_grad()
    (error / count).mean().backward()
    assert all(p.grad is None for p in policy.parameters())
    aware = objectives.flare.aware
    mean, online = aware.average.queries.clone(), aware.online.queries
    with torch.no_grad():
        online.add_(1.0)
    objectives.update()
    assert torch.allclose(aware.average.queries, 0.995 * mean + 0.005 * online)


def test_latent_tokens_move_the_backbone_and_not_the_head() -> None:
    policy, config = policy_of(TINY), ObjectivesConfig(tokens=TokensConfig(weight=1.0))
    objectives = Objectives(config, policy)
    group = with_codes(make_group(make_bodies(), "human_latent", 4, 0))
    masked = replace(group, mask=torch.zeros_like(group.mask))
    names = moved(policy, objectives, [masked])
    assert starts(names, "policy.backbone.model.vision_tower")
    assert starts(names, "objectives.tokens.out")
    assert not starts(names, "policy.head")
    _, logs = objectives.loss(policy, [masked], generator())
    assert logs["loss_tokens"] == pytest.approx(torch.log(torch.tensor(8.0)).item(), rel=0.3)
    alone, _ = objectives.loss(policy, [group], generator())
    flow, _ = Objectives(ObjectivesConfig(), policy).loss(policy, [group], generator())
    assert alone.item() == pytest.approx(flow.item() + logs["loss_tokens"], rel=1e-5)
    _, arm = objectives.loss(policy, [make_group(make_bodies(), "arm", 4, 0)], generator())
    assert "loss_tokens" not in arm


def test_latent_tokens_read_the_last_word_and_no_padding() -> None:
    policy = policy_of(TINY)
    head = Objectives(ObjectivesConfig(tokens=TokensConfig(weight=1.0)), policy).tokens
    context, mask = torch.randn(2, 6, 32), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    want = head(context, mask)
    noisy = torch.where(mask[..., None], context, torch.randn(2, 6, 32))
    assert torch.equal(head(noisy, mask), want)
    changed = context.clone()
    changed[1, 2] += torch.randn(32)
    assert not torch.allclose(head(changed, mask)[1], want[1])


def test_weights_of_labels_and_sources_scale_as_said() -> None:
    policy, arm = policy_of(TINY), make_group(make_bodies(), "arm", 4, 0)
    latent = make_group(make_bodies(), "human_latent", 4, 1)

    def loss(config: WeightsConfig, *batch: Group) -> tuple[float, dict[str, float]]:
        value, logs = Objectives(ObjectivesConfig(weights=config), policy).loss(policy, list(batch), generator())
        return value.item(), logs

    plain, logs = loss(WeightsConfig(), arm, latent)
    bodies = [logs["loss_body/arm"], logs["loss_body/human_latent"]]
    assert plain == pytest.approx(sum(bodies) / 2, rel=1e-5)
    assert (logs["share/arm_0"], logs["weight_share/arm_0"]) == (0.25, 0.25)
    third, logs = loss(WeightsConfig(latent=0.5), arm, latent)
    assert third == pytest.approx((2 * bodies[0] + bodies[1]) / 3, rel=1e-5)
    assert (logs["share/human_latent_0"], logs["weight_share/human_latent_0"]) == (0.25, pytest.approx(1 / 6))
    # A source of weight 0 is drawn and not learned.
    half, logs = loss(WeightsConfig(sources={"arm_1": 0.0}), arm)
    assert half == pytest.approx(logs["loss_source/arm_0"], rel=1e-5)
    assert logs["share/arm_1"] == 0.5
    assert "loss_source/arm_1" not in logs


def test_doubtful_labels_count_less() -> None:
    bodies, config = make_bodies(), WeightsConfig(confidence=True, std_half=0.5, gain_half=0.2)
    arm = make_group(bodies, "arm", 3, 0)
    scale = torch.tensor([3.0, 0.5])
    std = torch.tensor([0.0, 0.5, 1.0])[:, None, None] * scale.expand(3, 4, 2)
    std[:, 2:] = 99.0
    mask = arm.mask.clone()
    mask[:, 2:] = False
    trust = confidence(replace(arm, action_std=std, mask=mask), bodies["arm"], config)
    assert torch.allclose(trust, torch.tensor([1.0, 0.5, 0.2]))
    latent = make_group(bodies, "human_latent", 3, 0)
    gains = replace(latent, recon_gain=torch.tensor([-0.3, 0.2, 0.6]))
    assert torch.allclose(confidence(gains, bodies["human_latent"], config), torch.tensor([0.0, 0.5, 0.75]))
    assert confidence(arm, bodies["arm"], config).tolist() == [1.0] * 3
    policy = policy_of(TINY)
    told = Objectives(ObjectivesConfig(weights=config), policy).loss(policy, [gains], generator())[1]
    assert (
        told["loss_flow"] != Objectives(ObjectivesConfig(), policy).loss(policy, [gains], generator())[1]["loss_flow"]
    )


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    policy = policy_of(TINY)
    with pytest.raises(ConfigError, match=r"head\.future_tokens"):
        Objectives(ObjectivesConfig(flare=FLARE), policy)
    policy = policy_of()
    with pytest.raises(ConfigError, match=r"layer is 5, policy\.head\.layers 4"):
        Objectives(ObjectivesConfig(flare=replace(FLARE, layer=5)), policy)
    with pytest.raises(ConfigError, match="future_tokens is 4; 1 views pooled to a grid of 3 give 9"):
        Objectives(ObjectivesConfig(flare=replace(FLARE, grid=3)), policy)
    with pytest.raises(ConfigError, match="none of its weights trains"):
        Objectives(ObjectivesConfig(tokens=TokensConfig(weight=1.0)), policy_of(frozen=True))
    flare = Objectives(ObjectivesConfig(flare=FLARE), policy)
    with pytest.raises(DataError, match="'arm_0': its samples come without later frames"):
        flare.loss(policy, [make_group(make_bodies(), "arm", 2, 0)], generator())
    with pytest.raises(ConfigError, match=r"videos alone teach nothing.*flare.weight"):
        Objectives(ObjectivesConfig(), policy).loss(policy, [video()], generator())
    tokens = Objectives(ObjectivesConfig(tokens=TokensConfig(weight=1.0)), policy)
    latent = make_group(make_bodies(), "human_latent", 4, 0)
    with pytest.raises(DataError, match="'human_latent_0': its latent actions have no codes"):
        tokens.loss(policy, [latent], generator())
    with pytest.raises(DataError, match=r"4 codes up to \d+, objectives.tokens says 4 codes below 8"):
        tokens.loss(policy, [with_codes(latent, 90)], generator())
