"""The latent-action labeler: rows of latents and codes for every clip of a shard folder.

Writing tables, resuming and spreading the work is left to `pyramid.labels`; this file is its entry point ``lam``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam.config import LAMConfig, PairConfig
from lam.model import LatentActionModel
from lam.pairs import Pair, label_pairs
from lam.run import Rows, load_model, pair_context, run_pairs
from pyramid import files
from pyramid.config import to_dict
from pyramid.errors import SkipItemError
from pyramid.labels.protocol import BASE_FIELDS, FLAG_STATIC
from pyramid.labels.table import EMPTY
from pyramid.shards.frames import cuts_of, resized_frames
from pyramid.shards.reader import Sample

__all__ = ["LAMLabeler", "load"]


class ClipPairs(NamedTuple):
    """What the network needs of one clip."""

    key: str
    """Unique key."""
    pairs: list[Pair]
    """The P pairs, in order of time."""
    times_s: list[float]
    """Time of each pair's first frame, seconds from the clip's start."""
    first: Tensor
    """uint8 [P, 3, S, S], RGB."""
    second: Tensor
    """uint8 [P, 3, S, S], RGB."""
    text: str
    """The clip's instruction; empty if it has none."""
    embodiment: str = ""
    """Whose body the clip shows."""


@dataclass(frozen=True)
class PairFrames:
    """The labeler's first step: finds the pairs of a clip and decodes their frames; holds no weights."""

    wished: PairConfig
    """Gap and rate of the pairs."""
    size_px: int
    """Side of the frames, pixels."""

    def __call__(self, sample: Sample) -> ClipPairs:
        """Returns the pairs of a clip.

        Raises:
            SkipItemError: no two frames are the gap apart (``short``).
        """
        pairs = label_pairs(sample.times_s, self.wished.gap_s, self.wished.label_hz, cuts_of(sample))
        if not pairs:
            what = f"no two of its {len(sample)} frames are {self.wished.gap_s} s apart within one shot"
            raise SkipItemError("short", f"{sample.key}: {what}")
        wanted = sorted({index for pair in pairs for index in pair[:2]})
        frames = resized_frames(sample, wanted, self.size_px)
        place = {index: row for row, index in enumerate(wanted)}
        first, second = [place[pair.first] for pair in pairs], [place[pair.second] for pair in pairs]
        times_s = [float(sample.times_s[pair.first]) for pair in pairs]
        text = str(sample.meta.get("text", ""))
        body = str(sample.meta.get("embodiment", ""))
        return ClipPairs(sample.key, pairs, times_s, frames[first], frames[second], text, body)


class LAMLabeler:
    """Labels clips with a trained latent-action model; a `pyramid.labels` Labeler.

    A clip's rows depend on that clip alone: passes always have one shape, and no row of one sees another.

    Args:
        model: a trained model.
        config: what it was trained with.
        weights_sha256: digest of its weights.
    """

    name = "lam"

    def __init__(self, model: LatentActionModel, config: LAMConfig, weights_sha256: str) -> None:
        self.model, self.config, self.weights_sha256 = model.eval(), config, weights_sha256
        self.prepare = PairFrames(config.pairs, config.model.image_size_px)

    def digest(self) -> str:
        """Returns the digest of everything that decides a label: weights, sizes, pairs."""
        return files.digest(self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Returns what a reader of a label table must know."""
        pairs = self.config.pairs
        return {
            "labeler": self.name,
            "model": self.weights_sha256,
            "config": to_dict(self.config),
            "n_tokens": self.config.model.n_tokens,
            "code_dim": self.config.quantizer.dim,
            "codes_per_token": self.config.quantizer.codes_per_token,
            "n_codes": self.config.quantizer.n_codes,
            "gap_policy": {"gap_s": pairs.gap_s, "label_hz": pairs.label_hz, "clamped": False},
            "normaliser": None,
            **({} if pairs.label_hz is None else {"rate_hz": pairs.label_hz}),
        }

    def schema(self) -> pa.Schema:
        """Returns the columns; ``codes`` are null for a continuous bottleneck, ``motion`` is in [0, 1].

        A model that learned from some actions (``objectives.action_weight``) tells them of every pair: ``action`` is
        the mean over the gap in physical units, for a clip of an embodiment without any in those of the only one that
        had some, and an empty list where there are several.
        """
        n_tokens, quantizer = self.config.model.n_tokens, self.config.quantizer
        continuous = None if quantizer.n_codes else {EMPTY: b"continuous bottleneck"}
        return pa.schema(
            [
                *BASE_FIELDS,
                ("latent", pa.list_(pa.float32(), n_tokens * quantizer.dim)),
                pa.field("codes", pa.list_(pa.uint16(), n_tokens * quantizer.codes_per_token), metadata=continuous),
                ("recon_gain", pa.float32()),
                ("motion", pa.float32()),
                *([] if self.model.action_head is None else [("action", pa.list_(pa.float32()))]),
            ]
        )

    def compile(self) -> None:
        """Hands the networks to torch.compile."""
        for part in self.model.children():
            part.compile()

    def label(self, clips: Sequence[Sample | ClipPairs]) -> list[pa.Table]:
        """Labels clips, one table each, rows in time order; passes are filled across clips.

        Args:
            clips: what ``prepare`` returned, or samples.

        Raises:
            SkipItemError: a clip in which no two frames are the gap apart (``short``).
        """
        ready = [clip if isinstance(clip, ClipPairs) else self.prepare(clip) for clip in clips]
        if not ready:
            return []
        first, second = (torch.cat(frames) for frames in zip(*((c.first, c.second) for c in ready), strict=True))
        gaps = [pair.gap_s for clip in ready for pair in clip.pairs]
        texts = [clip.text for clip in ready for _ in clip.pairs]
        rows = run_pairs(self.model, first, second, context=pair_context(self.config, gaps, texts))
        ends = np.cumsum([0, *(len(clip.pairs) for clip in ready)]).tolist()
        return [self._table(clip, rows.part(*span)) for clip, *span in zip(ready, ends, ends[1:], strict=False)]

    def _table(self, clip: ClipPairs, rows: Rows) -> pa.Table:
        schema, pairs, count = self.schema(), clip.pairs, len(clip.pairs)
        static = rows.motion < self.config.pairs.static_threshold
        codes = schema.field("codes").type
        columns = [
            pa.array([clip.key] * count, pa.string()),
            pa.array(clip.times_s, pa.float64()),
            pa.array([pair.first for pair in pairs], pa.int32()),
            pa.array([pair.gap_s for pair in pairs], pa.float32()),
            pa.array(np.where(static, FLAG_STATIC, 0), pa.uint16()),
            _lists(rows.latent.reshape(count, -1), schema.field("latent").type),
            pa.nulls(count, codes) if rows.codes is None else _lists(rows.codes, codes),
            pa.array(rows.gain, pa.float32()),
            pa.array(rows.motion, pa.float32()),
        ]
        if self.model.action_head is not None:
            columns.append(pa.array(self._actions(clip, rows), pa.list_(pa.float32())))
        return pa.Table.from_arrays(columns, schema=schema)

    def _actions(self, clip: ClipPairs, rows: Rows) -> list[NDArray[np.float32]]:
        head = self.model.action_head
        if head is None or (len(head.names) > 1 and clip.embodiment not in head.names):
            return [np.zeros(0, np.float32)] * len(clip.pairs)
        name = clip.embodiment if clip.embodiment in head.names else head.names[0]
        latent = torch.from_numpy(rows.latent).to(head.linear.weight.device)
        with torch.inference_mode():
            return list(head.decode(latent, name).cpu().numpy())


def _lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)


def load(model_dir: str, device: str = "cpu") -> LAMLabeler:
    """Returns the labeler of a trained model: the entry point ``lam`` of ``pyramid.labelers``."""
    return LAMLabeler(*load_model(model_dir, device))
