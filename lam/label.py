"""The latent-action labeler: rows of latents and codes for every clip of a shard folder.

Writing tables, resuming and spreading the work is left to `pyramid.labels`; this file is its entry point ``lam``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lam.config import LAMConfig
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


class LAMLabeler:
    """Labels clips with a trained latent-action model; a `pyramid.labels` Labeler.

    A clip's rows depend on that clip alone: passes never mix clips and always have one shape.

    Args:
        model: a trained model.
        config: what it was trained with.
        weights_sha256: digest of its weights.
    """

    name = "lam"

    def __init__(self, model: LatentActionModel, config: LAMConfig, weights_sha256: str) -> None:
        self.model, self.config, self.weights_sha256 = model.eval(), config, weights_sha256

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
        }

    def schema(self) -> pa.Schema:
        """Returns the columns; ``codes`` are null for a continuous bottleneck, ``motion`` is in [0, 1]."""
        n_tokens, quantizer = self.config.model.n_tokens, self.config.quantizer
        continuous = None if quantizer.n_codes else {EMPTY: b"continuous bottleneck"}
        return pa.schema(
            [
                *BASE_FIELDS,
                ("latent", pa.list_(pa.float32(), n_tokens * quantizer.dim)),
                pa.field("codes", pa.list_(pa.uint16(), n_tokens * quantizer.codes_per_token), metadata=continuous),
                ("recon_gain", pa.float32()),
                ("motion", pa.float32()),
            ]
        )

    def label(self, samples: Sequence[Sample]) -> list[pa.Table]:
        """Labels clips, one table each, rows in time order.

        Raises:
            SkipItemError: a clip in which no two frames are the gap apart (``short``).
        """
        return [self._label_one(sample) for sample in samples]

    def _label_one(self, sample: Sample) -> pa.Table:
        wished = self.config.pairs
        pairs = label_pairs(sample.times_s, wished.gap_s, wished.label_hz, cuts_of(sample))
        if not pairs:
            raise SkipItemError(
                "short", f"{sample.key}: no two of its {len(sample)} frames are {wished.gap_s} s apart within one shot"
            )
        wanted = sorted({index for pair in pairs for index in pair[:2]})
        frames = resized_frames(sample, wanted, self.config.model.image_size_px)
        place = {index: row for row, index in enumerate(wanted)}
        first = frames[[place[pair.first] for pair in pairs]]
        second = frames[[place[pair.second] for pair in pairs]]
        told = pair_context(
            self.config, [pair.gap_s for pair in pairs], [str(sample.meta.get("text", ""))] * len(pairs)
        )
        return self._table(sample, pairs, run_pairs(self.model, first, second, context=told))

    def _table(self, sample: Sample, pairs: Sequence[Pair], rows: Rows) -> pa.Table:
        schema, count = self.schema(), len(pairs)
        static = rows.motion < self.config.pairs.static_threshold
        codes = schema.field("codes").type
        columns = [
            pa.array([sample.key] * count, pa.string()),
            pa.array([sample.times_s[pair.first] for pair in pairs], pa.float64()),
            pa.array([pair.first for pair in pairs], pa.int32()),
            pa.array([pair.gap_s for pair in pairs], pa.float32()),
            pa.array(np.where(static, FLAG_STATIC, 0), pa.uint16()),
            _lists(rows.latent.reshape(count, -1), schema.field("latent").type),
            pa.nulls(count, codes) if rows.codes is None else _lists(rows.codes, codes),
            pa.array(rows.gain, pa.float32()),
            pa.array(rows.motion, pa.float32()),
        ]
        return pa.Table.from_arrays(columns, schema=schema)


def _lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)


def load(model_dir: str, device: str = "cpu") -> LAMLabeler:
    """Returns the labeler of a trained model: the entry point ``lam`` of ``pyramid.labelers``."""
    return LAMLabeler(*load_model(model_dir, device))
