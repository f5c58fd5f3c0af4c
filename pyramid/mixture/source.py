"""One source of a mixture, opened: its items, their pictures and their actions.

An item is a time step of a clip at which a chunk of actions starts. Opening reads indexes only; shards and labels are
read when an item of theirs is drawn. Statistics are left to `pyramid.mixture.statistics`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import DataError
from pyramid.mixture.bodies import declared
from pyramid.mixture.clips import ClipCache, Wanted
from pyramid.mixture.index import ClipIndex
from pyramid.mixture.labelled import Labels
from pyramid.mixture.order import ItemOrder
from pyramid.mixture.spec import MixtureSpec
from pyramid.mixture.weights import Size
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.cache import ShardCache
from pyramid.shards.frames import square_frames
from pyramid.shards.reader import Sample, ShardSet
from pyramid.types import Embodiment, Split

_GOP = 12


@dataclass(frozen=True)
class Chunk:
    """What one item teaches."""

    action: NDArray[np.float32]
    """float32 [H, D], physical units; rows past the end or that the filter refuses are 0."""
    mask: NDArray[np.bool_]
    """bool [H]: False past the end of the clip, and where the filter refuses a label."""
    state: NDArray[np.float32]
    """float32 [S], or with a history [H, S], oldest first; physical units; S = 0 without proprioception."""
    quality: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What a labeler says of it: ``action_std`` float32 [H, D], ``recon_gain`` float32 [], ``codes`` int64 [C]."""


class Source:
    """Shard folders seen in one way: measured actions, pseudo-actions or latent actions.

    Raises:
        DataError: no clips of the split, no actions, or labels that do not fit the shards; the source is named.
    """

    def __init__(
        self,
        name: str,
        tier: str,
        mixture: MixtureSpec,
        *,
        split: Split,
        size_px: int,
        opened: dict[str, ShardSet],
    ) -> None:
        spec = mixture.tiers[tier].sources[name]
        self.name, self.tier, self.spec = name, tier, spec
        folders = [mixture.path(folder) for folder in spec.folders()]
        scores, measured = spec.filter.scores.path, spec.use == "action"
        table = mixture.path(scores) if scores else ""
        self.clips = ClipIndex(
            name, folders, spec.filter, split=split, with_actions=measured, opened=opened, scores=table
        )
        self.labels: Labels | None = None
        self._future_s, self._rates = mixture.future_s, self.clips.column("rate_hz").astype(np.float64)
        if spec.use == "action":
            self._sizes = self.clips.column("frames").astype(np.int64)
        elif spec.use == "video":
            self._sizes = self._frames_with_future()
        else:
            runs = [mixture.path(run) for run in spec.runs()]
            self.labels = Labels(name, self.clips, runs, use=spec.use, spec=spec.filter)
            self._sizes = self.labels.sizes
        self._ends = np.cumsum(self._sizes)
        self.measured = measured
        """Whether its actions were measured."""
        self.embodiment = declared(self._embodiment(mixture), spec, mixture.body(spec), name)
        past = self.embodiment.state_steps[:-1]
        self.after: NDArray[np.int64] = np.concatenate([past, np.arange(self.embodiment.horizon)])
        """Rows that belong to an item, int64 [k]: steps after its own, those of past states first, then the chunk's."""
        self._frames, self._spread = self.clips.column("frames").astype(np.int64), mixture.shuffle_frames
        self.order = ItemOrder(
            mixture.seed,
            name,
            self._sizes,
            self._frames,
            self.clips.shard_numbers(),
            window=mixture.window_shards,
            spread=mixture.shuffle_frames,
        )
        self._size_px = size_px
        self.hold(0)
        self._rows_held: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._window: tuple[int, int] | None = None
        self._shard_cache = ShardCache(mixture.shard_cache_mb) if mixture.shard_cache_mb else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def held_frames(self) -> int:
        """Frames that it is at most worth to hold in memory.

        Twice those whose items are mixed: a ring of hardly more than these would, once a clip had to be decoded again,
        lose another for it, and so on.
        """
        return min(2 * (self._spread + int(self._frames.max())), int(self._frames.sum()))

    def hold(self, frames: int) -> None:
        """Makes room for decoded frames, in place of what there was."""
        gops = [shards.metadata.get("config", {}).get("gop", _GOP) for shards in self.clips.shard_sets]
        width = self.embodiment.action_dim + self.embodiment.state_dim if self.measured else 0
        self.cache = ClipCache(len(self.clips), frames, width=width, size_px=self._size_px, gop=max(gops))

    @cached_property
    def digest(self) -> str:
        """Digest of the clips, the labels, and of which of them are drawn."""
        clips = [self.clips.table["key"].to_pylist(), self.clips.table["sha256"].to_pylist()]
        return files.digest([clips, self.labels.digest if self.labels else ""])

    @property
    def n_frames(self) -> int:
        """Frames in all clips that are drawn from."""
        return int(self.clips.column("frames").sum())

    @property
    def hours(self) -> float:
        """Length of all clips that are drawn from."""
        return float(self.clips.column("duration_s").sum()) / 3600

    @cached_property
    def size(self) -> Size:
        """What the source holds, and what a sample of it spans."""
        body, rate = self.embodiment, float(np.median(self.clips.column("rate_hz")))
        seconds = (1 if body.label == "latent" else body.horizon) / body.rate_hz
        return Size(len(self), seconds * rate, seconds)

    def _embodiment(self, mixture: MixtureSpec) -> Embodiment:
        horizon = mixture.horizon
        suffix = "" if self.spec.use == "action" else f"_{self.spec.use}"
        name = self.spec.embodiment or "_".join(self.clips.distinct("embodiment")) + suffix
        if self.spec.use == "video":
            rate = 1 / self._future_s
            return Embodiment(name=name, state_dim=0, action_dim=0, horizon=1, rate_hz=rate, label="video")
        if self.labels is None:
            return self._measured(name, mixture)
        table = self.labels.first_table()
        column = table["latent" if self.spec.use == "latent" else "action"]
        width = len(column[0].as_py())
        if self.spec.use == "latent":
            # A token may have several codes, or none: the labeler says how many tokens there are.
            tokens = int(
                self.labels.metadata.get("config", {}).get("n_tokens") or len(table["codes"][0].as_py() or [1])
            )
            gap_s = float(table["gap_s"][0].as_py())
            return Embodiment(
                name=name, state_dim=0, action_dim=width // tokens, horizon=tokens, rate_hz=1 / gap_s, label="latent"
            )
        # Pseudo-actions come at the rate of the model that made them.
        rate = float(self.labels.metadata.get("config", {}).get("rate_hz", self.clips.distinct("rate_hz")[0]))
        return Embodiment(name=name, state_dim=0, action_dim=width, horizon=horizon, rate_hz=rate, label="pseudo")

    def _measured(self, name: str, mixture: MixtureSpec) -> Embodiment:
        sizes = {column: self.clips.distinct(column) for column in ("action_dim", "state_dim", "rate_hz")}
        for column, found in sizes.items():
            if len(found) > 1:
                raise DataError(
                    f"source '{self.name}': {column} is {found[0]} in one clip and {found[-1]} in another; "
                    "make a source of each"
                )
        state_dim = int(sizes["state_dim"][0]) if self.spec.state else 0
        return Embodiment(
            name=name,
            state_dim=state_dim,
            action_dim=int(sizes["action_dim"][0]),
            horizon=mixture.horizon,
            rate_hz=float(sizes["rate_hz"][0]),
            label="action",
            state_history=mixture.state_history if state_dim else 1,
            state_gap_s=mixture.state_gap_s if state_dim else 0.0,
        )

    def label_of(self, clip: int) -> str:
        """Returns where a clip's actions come from: ``action``, the folder of its label run, or ``video``: nowhere."""
        return self.spec.use if self.labels is None else self.labels.runs[int(self.clips.part[clip])]

    def locate(self, item: int) -> tuple[int, int]:
        """Returns an item's clip and its step in that clip."""
        clip = int(np.searchsorted(self._ends, item, side="right"))
        return clip, item - int(self._ends[clip] - self._sizes[clip])

    def wanted(
        self, items: Sequence[int], at: Sequence[int], images: NDArray[np.uint8], *, later: bool = False
    ) -> Wanted:
        """Returns where items lie, and the places in ``images`` [N, S, S, 3] that their frames go to.

        With ``later`` it is the frames ``future_s`` after theirs, some of which may lie past the ends of their clips.
        """
        numbers = np.asarray(items, np.int64)
        clips = np.searchsorted(self._ends, numbers, side="right")
        steps = frames = numbers - (self._ends[clips] - self._sizes[clips])
        if self.labels is not None:
            both = zip(clips.tolist(), steps.tolist(), strict=True)
            frames = np.array([self.labels.frame(clip, step) for clip, step in both], np.int64)
        if later:
            frames = frames + self._ahead(clips)
        return Wanted(clips, self._frames[clips], frames, steps, np.asarray(at, np.int64), images)

    def enter(self, rank: int) -> None:
        """Makes ready for the source's ``rank``-th sample: begins to fetch the shards that come."""
        if self._shard_cache is None or not self._is_remote:
            return
        epoch, window, _ = self.order.locate(rank)
        if self._window != (epoch, window):
            self._window = epoch, window
            coming = [*self.order.shards_of(epoch, window), *self.order.shards_of(epoch, window + 1)]
            self._shard_cache.ahead(self._shard_facts(shard) for shard in coming)

    @cached_property
    def _is_remote(self) -> bool:
        return any(files.is_remote(shards.folder) for shards in self.clips.shard_sets)

    @cached_property
    def _first_clips(self) -> NDArray[np.int64]:
        return np.unique(self.clips.shard_numbers(), return_index=True)[1].astype(np.int64)

    def _shard_facts(self, shard: int) -> tuple[str, str, int]:
        return self._shard_of(int(self._first_clips[shard]))

    def sample(self, clip: int) -> Sample:
        """Reads a clip.

        Raises:
            DataError: it is not what the index says.
        """
        found = self.cache.sample(clip)
        if found is None:
            shards, number = self.clips.shard_sets[int(self.clips.part[clip])], int(self.clips.number[clip])
            through = self._shard_cache if files.is_remote(shards.folder) else None
            found = shards.read(number, fetch=through.read if through else None)
            self.cache.keep(clip, found)
        return found

    def read(self, clip: int, step: int) -> tuple[Chunk, NDArray[np.uint8]]:
        """Returns what is to be learned at a step, and the frame at which it starts, uint8 [H, W, 3], RGB.

        For single samples; those of a batch are brought together by `pyramid.mixture.filling`.

        Raises:
            DataError: the clip is not what the index says, or its actions are not finite or of another width.
        """
        sample = self.sample(clip)
        rows = self.measured_rows(sample)
        body = self.embodiment
        if rows is None:
            chunk = self.chunk(clip, step)
        else:
            past = rows[np.maximum(step + body.state_steps, 0), body.action_dim :]
            chunk = self.chunk(clip, step, rows[step : step + body.horizon], past.reshape(body.state_shape))
        return chunk, square_frames(sample, [self.frame_of(clip, step)], self._size_px)[0]

    def later(self, clip: int, step: int) -> NDArray[np.uint8] | None:
        """Returns the frame ``future_s`` after that of a step, uint8 [H, W, 3], RGB; None past the end of the clip.

        Raises:
            DataError: the clip is not what the index says.
        """
        frame = self.frame_of(clip, step) + int(self._ahead([clip])[0])
        return square_frames(self.sample(clip), [frame], self._size_px)[0] if frame < self._frames[clip] else None

    def _ahead(self, clips: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns how many frames ``future_s`` is in clips, at least 1."""
        frames: NDArray[np.int64] = np.maximum(np.rint(self._future_s * self._rates[clips]), 1).astype(np.int64)
        return frames

    def _frames_with_future(self) -> NDArray[np.int64]:
        frames = self.clips.column("frames").astype(np.int64)
        left: NDArray[np.int64] = np.maximum(frames - self._ahead(np.arange(len(frames))), 0)
        if not left.any():
            raise DataError(f"source '{self.name}': none of its clips is longer than future_s: {self._future_s:g} s")
        return left

    def frame_of(self, clip: int, step: int) -> int:
        """Returns the frame at which a step of a clip begins."""
        return step if self.labels is None else self.labels.frame(clip, step)

    def chunk(
        self,
        clip: int,
        step: int,
        rows: NDArray[np.float32] | None = None,
        states: NDArray[np.float32] | None = None,
    ) -> Chunk:
        """Returns what is to be learned at a step.

        Args:
            clip: the clip.
            step: its step.
            rows: of measured actions, actions and states from the step on, float32 [n, D + S].
            states: beside them the state, float32 [S], or with a history [H, S].

        Raises:
            DataError: they are not finite, or the labels are not what they were.
        """
        body, state = self.embodiment, np.zeros(0, np.float32)
        if body.label == "video":
            return Chunk(np.zeros((body.horizon, 0), np.float32), np.zeros(body.horizon, bool), state)
        quality: dict[str, NDArray[Any]] = {}
        if rows is not None and states is not None:
            if not np.isfinite(rows[:, : body.action_dim]).all() or not np.isfinite(states).all():
                where = f"source '{self.name}': clip {self.clips.key(clip)}"
                raise DataError(f"{where} has actions or states that are not finite numbers")
            values, state, ok = rows[:, : body.action_dim], states, np.ones(len(rows), bool)
        else:
            assert self.labels is not None  # noqa: S101
            n = 1 if body.label == "latent" else body.horizon
            values, ok = self.labels.values(clip, step, n)
            quality = self.labels.quality(clip, step, n)
            if body.label == "latent":
                latent = values[0].reshape(body.horizon, body.action_dim)
                return Chunk(latent, np.ones(body.horizon, bool), state, {k: v[0] for k, v in quality.items()})
        action, mask = np.zeros((body.horizon, body.action_dim), np.float32), np.zeros(body.horizon, bool)
        action[: len(values)] = np.where(ok[:, None], values, 0)
        mask[: len(values)] = ok
        return Chunk(action, mask, state, {name: _padded(v, body.horizon) for name, v in quality.items()})

    def measured_rows(self, sample: Sample) -> NDArray[np.float32] | None:
        """Returns actions and states of a clip side by side, float32 [T, D + S]; None where none are measured.

        Raises:
            DataError: it has none, or of another width.
        """
        if not self.measured:
            return None
        body, action, state = self.embodiment, sample.action, sample.state
        if action is None or action.shape[1] != body.action_dim:
            raise DataError(f"source '{self.name}': clip {sample.key} has no actions of {body.action_dim} dimensions")
        if state is None or not body.state_dim:
            state = np.zeros((len(action), 0), np.float32)
        if state.shape[1] != body.state_dim:
            raise DataError(f"source '{self.name}': clip {sample.key} has no states of {body.state_dim} dimensions")
        return np.concatenate([action, state], 1, dtype=np.float32, casting="same_kind")

    def clip_rows(self, clip: int) -> NDArray[np.float32] | None:
        """Does what `measured_rows` does for a clip whose frames are not needed; holds those of the last clips.

        Raises:
            DataError: the clip is not what the index says, or has no actions, or of another width.
        """
        if not self.measured:
            return None
        rows = self._rows_held.pop(clip, None)
        if rows is None:
            rows = self.measured_rows(self.sample(clip))
            assert rows is not None  # noqa: S101
        self._rows_held[clip] = rows
        while len(self._rows_held) > 1 and sum(map(len, self._rows_held.values())) > self.held_frames:
            self._rows_held.popitem(last=False)
        return rows

    def rows(self, clip: int, ahead: ReadAhead) -> dict[str, NDArray[np.float32]] | None:
        """Returns all rows of a clip that are drawn, for statistics: ``action`` [N, D] and, if known, ``state`` [N, S].

        The tokens of latent actions count as rows. None for a clip without any.

        Raises:
            DataError: the clip is not what the index says.
        """
        body = self.embodiment
        if self.labels is not None:
            if not self._sizes[clip]:
                return None
            values, ok = self.labels.values(clip, 0, 2**31)
            return {"action": values[ok].reshape(-1, body.action_dim)}
        shards = self.clips.shard_sets[int(self.clips.part[clip])]
        sample = shards.read(int(self.clips.number[clip]), ahead)
        if sample.action is None or sample.action.shape[1] != body.action_dim:
            raise DataError(f"source '{self.name}': clip {sample.key} has no actions of {body.action_dim} dimensions")
        state = {} if sample.state is None or not body.state_dim else {"state": np.asarray(sample.state, np.float32)}
        return {"action": np.asarray(sample.action, np.float32), **state}

    def check_shard(self, clip: int) -> None:
        """Refuses to go on when the shard of a clip is gone or was replaced.

        Raises:
            DataError: the shard is named.
        """
        url, _, size = self._shard_of(clip)
        try:
            now = files.size_bytes(url)
        except DataError as error:
            raise DataError(f"source '{self.name}': the shard '{url}' vanished during the run") from error
        if now != size:
            raise DataError(
                f"source '{self.name}': the shard '{url}' changed during the run: {now} bytes, its index says {size}"
            )

    def _shard_of(self, clip: int) -> tuple[str, str, int]:
        row: dict[str, Any] = self.clips.row(clip)
        folder = self.clips.shard_sets[int(self.clips.part[clip])].folder
        return files.join(folder, row["shard"]), row["shard_sha256"], row["shard_bytes"]


def _padded(rows: NDArray[Any], n: int) -> NDArray[Any]:
    """Returns rows [m, ...] with zeros after them, [n, ...]."""
    return np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])
