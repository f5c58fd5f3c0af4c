"""The control loop on an injected clock: two rates, three ways of playing chunks, limits; once in real time."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from tiny_deploy import CENTER, SCALE, STEPS, make_deploy

from pyramid.errors import ConfigError, DataError
from pyramid.normalize import Normalizer
from vla.deploy.control import ControlConfig, Controller
from vla.deploy.execution import ActionLimits, ChunkPlayer, Inpainting, action_limits
from vla.deploy.runtime import PROVIDERS, PolicyRuntime, choose_providers

FREE = {"margin": 1e6, "change": 1e6}
REST = np.float32([1.0, 2.0, 0.5])  # normalises to zero


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_deploy(tmp_path_factory.mktemp("deploy") / "x", single_step=True)


@pytest.fixture
def policy(folder):
    return PolicyRuntime.load(str(folder), threads=1)


def observation(level=0, state=REST):
    return {"images": np.full((2, 8, 8, 3), level, np.uint8), "text": "", "state": state}


def normalised(command):
    return (command.action - CENTER) / SCALE


def start(policy, **options):
    clock = Clock()
    return Controller(policy, ControlConfig(**options), clock=clock), clock


def test_two_rates_share_the_newest_context(policy):
    control, clock = start(policy, execute_steps=1, late_s=0.25, stale_s=1.0, **FREE)
    assert control.tick().held == "there is no observation yet"
    assert control.tick().action is None
    control.observe(observation(255))
    assert control.tick().held
    assert control.think()
    assert not control.think()  # nothing new to look at
    first = normalised(control.tick())
    level = first[0]  # one step of the single-step graph: mean pixel + text of one token (<bos> = 1) / 1000
    assert np.allclose(first, 1.001, atol=1e-5)
    control.observe(observation(0, REST + np.float32([0.5, 2.0, 1.0])))
    assert np.allclose(normalised(control.tick()), level + 1, atol=1e-5)  # old context, newest state
    clock.now += 0.3
    assert np.allclose(normalised(control.tick()), level + 1, atol=1e-5)
    assert control.counts.late_contexts == 1
    assert control.think()
    assert np.allclose(normalised(control.tick()), 1.001, atol=1e-5)  # new context
    assert dataclasses.asdict(control.counts) == {
        "steps": 7, "chunks": 4, "contexts": 2, "late_contexts": 2, "held": 3, "limited": 0, "missed_deadlines": 0,
        "failures": 0,
    }  # fmt: skip


@pytest.mark.parametrize("hold", ["last", "zero"])
def test_a_stale_observation_holds_and_says_so(policy, hold):
    control, clock = start(policy, execute_steps=1, stale_s=1.0, hold=hold, **FREE)
    control.observe(observation(100))
    control.think()
    last = control.tick().action
    clock.now += 1.5
    command = control.tick()
    assert command.held == "the newest context is of an observation 1.50 s old"
    assert command.action.tolist() == (last.tolist() if hold == "last" else [0, 0])
    control.observe(observation(100))
    assert control.tick().held  # seen, but not yet looked at
    control.think()
    assert not control.tick().held
    with pytest.raises(DataError, match="not finite"):
        control.observe(observation(0, REST * np.nan))
    assert not control.tick().held  # the good one still counts


def test_a_chunk_is_asked_for_every_so_many_steps(policy):
    control, _ = start(policy, execute_steps=3, **FREE)
    control.observe(observation())
    control.think()
    for _ in range(7):
        control.tick()
    assert control.counts.chunks == 3
    control, _ = start(policy, execute_steps=100, **FREE)
    control.observe(observation())
    control.think()
    for _ in range(2 * STEPS + 1):  # a chunk that has ended is followed by a new one
        control.tick()
    assert control.counts.chunks == 3


def test_slow_steps_are_counted(policy):
    control, clock = start(policy)
    control.observe(observation())
    control.think()
    chunk = policy.chunk

    def slow(*args, **options):
        clock.now += 0.11
        return chunk(*args, **options)

    control.policy.chunk = slow
    control.tick()
    control.tick()  # plays on, asks nothing
    assert control.counts.missed_deadlines == 1


def test_failures_hold_and_the_loop_goes_on(policy, caplog):
    control, _ = start(policy, execute_steps=1, **FREE)
    control.observe(observation())
    control.think()
    good = control.tick().action
    chunk, control.policy.chunk = policy.chunk, lambda *_, **__: np.full((STEPS, 2), np.nan, np.float32)
    command = control.tick()
    assert command.held == "System 1 failed: PyramidError"
    assert command.action.tolist() == good.tolist()
    control.policy.chunk = chunk
    assert not control.tick().held
    assert control.counts.failures == 1
    assert "not finite" in caplog.text


def test_players_against_closed_forms():
    chunks = [np.float32([[10 * k + i] for i in range(4)]) for k in range(3)]
    newest, mean = ChunkPlayer(), ChunkPlayer(0.5)
    for step, chunk in enumerate(chunks):
        newest.add(chunk, step)
        mean.add(chunk, step)
    assert newest.action(2) == 20
    assert newest.action(5) == 23
    assert newest.action(6) is None
    weights = np.exp(-0.5 * np.arange(3))
    assert mean.action(2) == pytest.approx((weights @ [2, 11, 20]) / weights.sum())
    assert mean.action(4) == pytest.approx((weights[:2] @ [13, 22]) / weights[:2].sum())
    assert newest.rest(3).tolist() == [[21], [22], [23]]
    assert newest.rest(6) is None
    assert ChunkPlayer().rest(0) is None


def test_limits_are_those_of_the_statistics():
    limits = action_limits(Normalizer("min_max", np.float32([0, 5]), np.float32([2, 0])), margin=0.5, change=0.25)
    action, changed = limits.apply(np.float32([9, 6]), None)
    assert (action.tolist(), changed) == ([3, 5], [0, 1])
    action, changed = limits.apply(np.float32([-9, 5]), np.float32([1, 5]))
    assert (action.tolist(), changed) == ([0.5, 5], [0])
    spread = action_limits(Normalizer("mean_std", np.float32([1]), np.float32([2])), margin=0.0, change=1.0)
    assert (spread.low.tolist(), spread.high.tolist()) == ([-7], [9])
    free = action_limits(
        Normalizer("identity", np.zeros(1, np.float32), np.ones(1, np.float32)), margin=0.0, change=1.0
    )
    assert free.apply(np.float32([1e30]), np.float32([0]))[1] == []
    assert isinstance(free, ActionLimits)


def test_the_loop_keeps_the_limits(policy):
    control, _ = start(policy, execute_steps=1, margin=0.0, change=0.25)
    control.observe(observation(255, REST - np.float32([0.5, 2.0, 1.0])))  # 1.001 - 1
    control.think()
    assert control.tick().limited == []
    control.observe(observation(255))
    commands = [control.tick() for _ in range(5)]
    assert np.allclose([normalised(c)[0] for c in commands], [0.251, 0.501, 0.751, 1, 1], atol=1e-5)
    assert [c.limited for c in commands] == [[0, 1]] * 5


@pytest.mark.parametrize("rule", ["line", "published"])
def test_real_time_chunking_continues_the_old_chunk(policy, rule):
    """In one straight step both rules come to the same."""
    frozen, ramp = 1, 6.0
    rtc = {"execution": "rtc", "rtc_frozen_steps": frozen, "rtc_ramp": ramp, "rtc_rule": rule}
    control, _ = start(policy, execute_steps=2, **rtc, **FREE)
    control.observe(observation(0))
    control.think()
    old = [normalised(control.tick())[0] for _ in range(2)]
    assert np.allclose(old, 0.001, atol=1e-5)
    control.observe(observation(255))
    control.think()
    new = [normalised(control.tick())[0] for _ in range(2)]
    # Two steps of the old chunk are left: one is kept, one let go half-way up the ramp, the rest are the new chunk's.
    loose = (1 - np.exp(-ramp / 2)) / (1 - np.exp(-ramp))
    assert new == pytest.approx([0.001, 0.001 + loose * 1.0], abs=1e-5)
    tie = Inpainting(np.zeros((3, 2), np.float32), 1, 2.0)
    rise = (1 - np.exp(-2.0 * np.array([1 / 3, 2 / 3]))) / (1 - np.exp(-2.0))
    assert tie.free(5)[:, 0] == pytest.approx([0, *rise, 1, 1])
    assert Inpainting(np.zeros((9, 2), np.float32), 9).free(4)[:, 0].tolist() == [0, 0, 0, 0]


def test_ensembling_averages_where_receding_does_not(policy):
    found = {}
    for execution in ("receding", "ensemble"):
        control, _ = start(policy, execution=execution, execute_steps=1, ensemble_decay=0.0, **FREE)
        for level in (0, 255):
            control.observe(observation(level))
            control.think()
            found[execution] = normalised(control.tick())[0]
    assert found == {"receding": pytest.approx(1.001, abs=1e-5), "ensemble": pytest.approx(0.501, abs=1e-5)}


def test_what_the_folder_or_the_machine_lacks_is_said(tmp_path):
    plain = PolicyRuntime.load(str(make_deploy(tmp_path / "plain")), threads=1)
    with pytest.raises(ConfigError, match="export with --single-step"):
        Controller(plain, ControlConfig(execution="rtc"))
    with pytest.raises(ConfigError, match="export with --single-step"):
        plain.chunk(plain.encode(observation()), REST, tie=Inpainting(np.zeros((1, 2), np.float32), 1))
    with pytest.raises(ValueError, match="stale_s >= late_s"):
        ControlConfig(late_s=2.0)
    assert choose_providers("cpu") == [PROVIDERS["cpu"]]
    assert choose_providers("auto")[-1] == PROVIDERS["cpu"]
    assert plain.provider == PROVIDERS["cpu"]
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        choose_providers("cdua")


def test_both_ways_of_sampling_start_from_the_same_noise(policy):
    seen = observation(50)
    one_by_one = policy.chunk(policy.encode(seen), REST, seed=3)
    at_once = policy.act(seen, seed=3)
    assert np.abs(one_by_one - at_once).max() > 0.01  # at_once keeps a tenth of the noise, by make_deploy's design
    assert np.abs((one_by_one - CENTER) / SCALE - (50 / 255 + 0.001)).max() < 1e-5


def test_in_real_time_with_threads(tmp_path):
    policy = PolicyRuntime.load(str(make_deploy(tmp_path / "x", rate_hz=100.0)), threads=1)
    control = Controller(policy, ControlConfig(execute_steps=2, system2_hz=50.0, late_s=30.0, stale_s=60.0))
    stop, commands = threading.Event(), []

    def send(command):
        commands.append(command)
        control.observe(observation(len(commands) % 256))
        if control.counts.contexts >= 5 and len(commands) >= 20:
            stop.set()

    watchdog = threading.Timer(60, stop.set)
    watchdog.start()
    before = time.monotonic()
    counts = control.run(send, stop)
    seconds = time.monotonic() - before
    watchdog.cancel()
    assert counts.contexts >= 5
    assert counts.steps == len(commands) >= 20
    assert (counts.steps - 1) / 100.0 <= seconds  # never faster than the control rate
    assert counts.failures == 0
    acted = [c for c in commands if not c.held]
    assert len(acted) >= 10
    assert all(np.isfinite(c.action).all() for c in acted)
