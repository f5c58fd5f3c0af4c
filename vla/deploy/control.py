"""A robot's control loop around an exported policy: System 2 on its own clock, System 1 at the control rate.

Networks are `vla.deploy.runtime`'s, chunks and limits `vla.deploy.execution`'s; sending actions is the robot's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, PyramidError
from vla.deploy.execution import ChunkPlayer, Inpainting, action_limits
from vla.deploy.runtime import Encoded, PolicyRuntime

__all__ = ["Command", "ControlConfig", "ControlCounts", "Controller"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """How chunks become motion, and when the robot holds still."""

    execution: Literal["receding", "ensemble", "rtc"] = "receding"
    """The newest chunk; the average of all chunks (temporal ensembling); or chunks tied to the one before (real-time
    chunking, needs `export --single-step`)."""
    execute_steps: int = 8
    """Control steps after which System 1 is asked again, >= 1."""
    ensemble_decay: float = 0.01
    """Weight of a chunk against the next older one is ``exp(-decay)``, >= 0."""
    rtc_frozen_steps: int = 2
    """First steps of a new chunk that stay as the old chunk has them, >= 0."""
    rtc_ramp: float = 6.0
    """How fast real-time chunking lets go of the other steps, > 0."""
    rtc_rule: Literal["line", "published"] = "line"
    """How real-time chunking binds them: see `vla.deploy.execution.Inpainting`."""
    system2_hz: float = 10.0
    """How often System 2 looks, > 0."""
    late_s: float = 0.25
    """Contexts of observations older than this are used and counted as late, seconds, > 0."""
    stale_s: float = 1.0
    """Contexts of observations older than this are not used: the robot holds, seconds, >= `late_s`."""
    hold: Literal["last", "zero"] = "last"
    """What holding is: the last action again (positions), or zeros (velocities and displacements)."""
    margin: float = 0.1
    """How far outside the range of the data an action may lie, as a share of half that range, >= 0."""
    change: float = 0.5
    """Largest change of an action from one control step to the next, as a share of half the range of the data, > 0."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.execute_steps < 1 or self.rtc_frozen_steps < 0:
            raise ValueError(f"execute_steps >= 1 and rtc_frozen_steps >= 0 are needed, got {self}")
        if min(self.rtc_ramp, self.system2_hz, self.late_s, self.change) <= 0 or self.stale_s < self.late_s:
            raise ValueError(f"rtc_ramp, system2_hz, late_s and change must be positive, stale_s >= late_s, got {self}")
        if min(self.ensemble_decay, self.margin) < 0:
            raise ValueError(f"ensemble_decay and margin must not be negative, got {self}")


@dataclass(frozen=True)
class Command:
    """What the robot is to do in one control step."""

    action: NDArray[np.float32] | None
    """float32 [D], physical units; None when there is nothing yet that could be held."""
    held: str
    """Why the robot holds; empty when the action is the policy's."""
    limited: list[int]
    """Dimensions that the limits changed."""
    context_age_s: float
    """Age of the observation behind it, seconds; infinite when there is none."""


@dataclass
class ControlCounts:
    """What happened so far."""

    steps: int = 0
    """Control steps."""
    chunks: int = 0
    """Times that System 1 was asked."""
    contexts: int = 0
    """Times that System 2 has looked."""
    late_contexts: int = 0
    """Chunks made from a context older than `late_s`."""
    held: int = 0
    """Control steps in which the robot held."""
    limited: int = 0
    """Control steps whose action the limits changed."""
    missed_deadlines: int = 0
    """Control steps that took longer than a step lasts."""
    failures: int = 0
    """Errors of either system; the log has them."""


@dataclass
class _Seen:
    observation: dict[str, Any]
    at_s: float


@dataclass
class _Context:
    encoded: Encoded
    seen: _Seen


class Controller:
    """Turns observations into commands. `observe` and `think` may be called from other threads than `tick`.

    Args:
        policy: an exported policy.
        config: how.
        clock: seconds that never go back.
        seed: decides the noise of all chunks.

    Raises:
        ConfigError: real-time chunking without the graphs for it.
        DataError: the policy takes several states, and does not say how far apart.
    """

    def __init__(
        self,
        policy: PolicyRuntime,
        config: ControlConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        self.config = config or ControlConfig()
        if self.config.execution == "rtc" and not policy.single_step:
            raise ConfigError("real-time chunking needs the single-step graphs: export with --single-step")
        self.policy, self.counts, self._clock, self._seed = policy, ControlCounts(), clock, seed
        self.period_s = 1.0 / policy.embodiment.rate_hz
        self._limits = action_limits(
            policy.spec.action, margin=self.config.margin, change=self.config.change, body=policy.embodiment
        )
        self._player = ChunkPlayer(self.config.ensemble_decay if self.config.execution == "ensemble" else None)
        self._history = policy.history() if policy.embodiment.state_history > 1 else None
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._context: _Context | None = None
        self._last: NDArray[np.float32] | None = None
        self._asked_at = -self.config.execute_steps

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Takes in the newest observation, as `PolicyRuntime.act` takes it.

        Of a policy with a history of states, ``state`` is the present one, float [S]: the past ones are kept here.

        Raises:
            DataError: it does not fit; the one before stays, and grows old.
        """
        seen, now = dict(observation), self._clock()
        if self._history is not None and np.ndim(seen.get("state", 0)) == 1:
            with self._lock:
                seen["state"] = self._history.add(seen["state"], now)
        self.policy.check(seen)
        with self._lock:
            self._seen = _Seen(seen, now)

    def think(self) -> bool:
        """Has System 2 look at the newest observation; returns False when there is no new one."""
        with self._lock:
            seen, context = self._seen, self._context
        if seen is None or (context is not None and context.seen is seen):
            return False
        encoded = self.policy.encode(seen.observation)
        with self._lock:
            self._context = _Context(encoded, seen)
            self.counts.contexts += 1
        return True

    def tick(self) -> Command:
        """Returns the command of the next control step; never raises for what a policy or an observation does."""
        start, step = self._clock(), self.counts.steps
        with self._lock:
            seen, context = self._seen, self._context
        age = start - context.seen.at_s if context is not None else float("inf")
        command = self._decide(step, seen, context, age)
        self.counts.steps += 1
        self.counts.held += bool(command.held)
        self.counts.limited += bool(command.limited)
        self.counts.missed_deadlines += self._clock() - start > self.period_s
        return command

    def run(self, send: Callable[[Command], None], stop: threading.Event) -> ControlCounts:
        """Ticks at the control rate and has System 2 look in a thread of its own, until `stop` is set.

        Args:
            send: is given every command, at once.
            stop: ends the loop.
        """
        thinker = threading.Thread(target=self._think_until, args=(stop,), name="system2", daemon=True)
        thinker.start()
        due = self._clock()
        while not stop.is_set():
            send(self.tick())
            due = max(due + self.period_s, self._clock())  # a missed step is not made up for
            stop.wait(max(0.0, due - self._clock()))
        thinker.join(5.0)
        return self.counts

    def _think_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            end = self._clock() + 1.0 / self.config.system2_hz
            try:
                self.think()
            except Exception:  # the context grows old, and the robot holds
                self._failed("System 2")
            stop.wait(max(0.0, end - self._clock()))

    def _decide(self, step: int, seen: _Seen | None, context: _Context | None, age: float) -> Command:
        if seen is None or context is None:
            return self._hold("there is no observation yet", age)
        if age > self.config.stale_s:
            return self._hold(f"the newest context is of an observation {age:.2f} s old", age)
        try:
            if step - self._asked_at >= self.config.execute_steps or self._player.action(step) is None:
                self._ask(step, seen, context, age)
            action = self._player.action(step)
            if action is None or not np.isfinite(action).all():
                raise PyramidError("the policy gave numbers that are not finite")
        except Exception as error:
            self._failed("System 1")
            return self._hold(f"System 1 failed: {type(error).__name__}", age)
        action, limited = self._limits.apply(action, self._last)
        self._last = action
        return Command(action, "", limited, age)

    def _ask(self, step: int, seen: _Seen, context: _Context, age: float) -> None:
        """Has System 1 make a chunk of the newest context and the newest state."""
        config, rest = self.config, self._player.rest(step)
        tie = None
        if config.execution == "rtc" and rest is not None:
            tie = Inpainting(rest, config.rtc_frozen_steps, config.rtc_ramp, config.rtc_rule)
        chunk = self.policy.chunk(context.encoded, seen.observation.get("state"), seed=self._seed + step, tie=tie)
        self._player.add(chunk, step)
        self._asked_at = step
        self.counts.chunks += 1
        self.counts.late_contexts += age > config.late_s

    def _hold(self, why: str, age: float) -> Command:
        action = self._last
        if self.config.hold == "zero":
            action = np.zeros(self.policy.embodiment.action_dim, np.float32)
        return Command(action, why, [], age)

    def _failed(self, what: str) -> None:
        self.counts.failures += 1
        logger.exception("%s failed", what)
