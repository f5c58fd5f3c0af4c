"""Runs the units of a plan through an executor: each once, receipts after tables, retries, quarantine.

The one loop of all executors; where and how a unit runs is theirs.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pyramid import files, receipts
from pyramid.errors import DataError
from pyramid.jobs import Outcome, Quarantined
from pyramid.labels.config import LabelConfig
from pyramid.labels.executors import Ended, Executor
from pyramid.labels.plan import Plan, Run, Task
from pyramid.labels.station import Labelled, write_table
from pyramid.labels.watch import Watch
from pyramid.shards.layout import table_name

SEAL_EVERY = 4096
"""Receipts that lie about one by one before they are moved into one file."""
_WORTH_SEALING = 16
"""Receipts in a remote folder that are worth it at the end of a job."""
_POLL_S = 0.5


class Receipts:
    """The receipts of one labeler that this job writes."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self._plan, self._run = plan, run
        self._fresh: dict[str, Any] = {}

    def void(self, number: int) -> None:
        """Takes back a receipt that does not hold before its table is written anew.

        A job that is killed between the two would leave a receipt of one model and a table of another.
        """
        if number in self._run.stale:
            self._put(number, {"digest": ""})
            self._run.stale.discard(number)

    def write(self, number: int, outcome: Outcome) -> None:
        """Notes that a unit's table is there."""
        size = files.size_bytes(files.join(self._run.out, outcome.output))
        digest = self._run.unit_digest(self._plan.shards[number])
        self._put(number, {"digest": digest, "bytes": size, **asdict(outcome)})
        self._run.count(number, outcome)
        if len(self._fresh) >= SEAL_EVERY:
            self.seal()

    def _put(self, number: int, data: dict[str, Any]) -> None:
        name = self._plan.shards[number].name.removesuffix(".tar")
        files.write_json(receipts.path_of(self._run.out, name), data)
        self._fresh[name] = data

    def seal(self) -> None:
        """Moves the receipts of this job into one file."""
        receipts.seal(self._run.out, self._fresh)
        self._fresh = {}

    def close(self) -> None:
        """Leaves a remote folder's receipts where the next job finds them with few requests."""
        if files.is_remote(self._run.out) and len(self._fresh) >= _WORTH_SEALING:
            self.seal()


class Job:
    """One run of the plan.

    Args:
        plan: the shards.
        runs: the labelers, looked up in the plan already.
        executor: where units run.
        config: retries and limits.
        watch: who is told.
        ahead: how many units are begun between that which fetches a shard ahead and that which labels it; 0: none is.
    """

    def __init__(
        self,
        plan: Plan,
        runs: Sequence[Run],
        executor: Executor,
        config: LabelConfig,
        watch: Watch,
        *,
        ahead: int = 0,
    ) -> None:
        self._ahead = ahead
        self._plan, self._runs, self._executor, self._config, self._watch = plan, runs, executor, config, watch
        self._receipts = [Receipts(plan, run) for run in runs]
        self._again: deque[Task] = deque()
        self._attempts: Counter[tuple[int, int]] = Counter()
        self._n_units = todo_count(plan, runs)
        self._failed: list[Quarantined] = []

    def go(self) -> None:
        """Runs all units that are not done.

        Raises:
            PyramidError: what ends a job: a full disk, a model that does not load, too many failures.
        """
        tasks, flying = self._tasks(), 0
        try:
            while True:
                while self._executor.room() and (task := self._next(tasks)) is not None:
                    self._executor.submit(task)
                    flying += 1
                if not flying:
                    return
                for ended in self._executor.wait(_POLL_S):
                    flying -= 1
                    self._take(ended)
        finally:
            for written in self._receipts:
                written.close()

    def _tasks(self) -> Iterator[Task]:
        todo = self._todo()
        waiting = deque(itertools.islice(todo, self._ahead))
        for later in itertools.chain(todo, itertools.repeat(None)):
            if later is not None:
                waiting.append(later)
            if not waiting:
                return
            number, places = waiting.popleft()
            for place in places:
                self._receipts[place].void(number)
            yield self._plan.task(number, places, [later[0]] if later and self._ahead else [])

    def _todo(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        for number in range(len(self._plan)):
            places = tuple(place for place, run in enumerate(self._runs) if not run.done[number])
            if places:
                yield number, places

    def _next(self, tasks: Iterator[Task]) -> Task | None:
        return self._again.popleft() if self._again else next(tasks, None)

    def _take(self, ended: Ended) -> None:
        if ended.fatal is not None:
            raise ended.fatal
        if ended.labelled is not None:
            self._done(ended.task, ended.labelled)
        elif not ended.reason:
            self._again.append(ended.task)
        elif len(ended.task.labelers) > 1:
            # Each labeler by itself: the one that is to blame must not cost the others their labels.
            for place in ended.task.labelers:
                self._retry(ended, place)
        else:
            self._failed_once(ended, ended.task.labelers[0])

    def _done(self, task: Task, labelled: Labelled) -> None:
        for place, outcome in labelled.outcomes.items():
            self._receipts[place].write(task.number, outcome)
        self._watch.done(task, labelled)

    def _retry(self, ended: Ended, place: int) -> None:
        self._watch.unit("unit_retried", ended.task, place, reason=ended.reason, detail=ended.detail)
        self._again.append(self._plan.task(ended.task.number, (place,)))

    def _failed_once(self, ended: Ended, place: int) -> None:
        unit = (ended.task.number, place)
        self._attempts[unit] += 1
        if self._attempts[unit] <= self._config.retries:
            self._retry(ended, place)
            return
        run, task = self._runs[place], ended.task
        detail = f"labeler '{run.name}' failed {self._attempts[unit]} times on {task.shard}: {ended.detail}"
        item = Quarantined(item=task.shard.removesuffix(".tar"), reason=ended.reason, detail=detail)
        # A table without rows, so that whoever joins the labels of the other shards can.
        write_table(vars(run), task, [], run.schema)
        facts = {"clips": 0, "rows": 0}
        outcome = Outcome(facts=facts, output=table_name(task.shard), quarantined=(item,))
        self._receipts[place].write(task.number, outcome)
        self._watch.unit("unit_quarantined", task, place, reason=ended.reason, detail=detail)
        self._watch.set_aside()
        self._stop_if_too_many(item)

    def _stop_if_too_many(self, item: Quarantined) -> None:
        self._failed.append(item)
        n_failed, share = len(self._failed), self._config.max_failed_share
        if n_failed > 1 and n_failed > share * self._n_units:
            raise DataError(
                f"{n_failed} of {self._n_units} units failed, more than max_failed_share={share:g} allows; "
                f"the last: {item.detail}. Mend the cause and run again with --retry-quarantined"
            )


def todo_count(plan: Plan, runs: Sequence[Run]) -> int:
    """Returns how many tables are still to be made."""
    return len(plan) * len(runs) - sum(sum(run.done) for run in runs)


def seal_loose(folder: str) -> None:
    """Moves what former jobs left lying one by one into one file, if it is much."""
    names = [
        n.removesuffix(".json") for n in files.listdir(files.join(folder, receipts.RECEIPTS)) if n.endswith(".json")
    ]
    if len(names) >= SEAL_EVERY:
        receipts.seal(folder, receipts.read_all(folder, names))
