"""Small shard folders with labels of all three kinds, whose numbers say which frame of which clip they belong to."""

from __future__ import annotations

from pathlib import Path

import drawing
import pyarrow as pa

from pyramid import parquet
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.shards.reader import ShardSet

ARM, HUMAN, DREAMS = [5, 3, 4], [6, 4], [5, 5]
HORIZON = 3
LATENT_TOKENS, LATENT_DIM = 2, 3


def latent_of(number: int) -> list[float]:
    """The latent action of the frame that shows ``number``."""
    return [number + k / 10 for k in range(LATENT_TOKENS * LATENT_DIM)]


def label_tables(shards: str, *, use: str, gap_s: float = 0.2, **metadata: object) -> str:
    """Writes what a labeler says: of every frame but the last the number drawn on it."""
    opened = ShardSet.open(shards)
    width = LATENT_TOKENS * LATENT_DIM
    own = {
        "latent": [("latent", pa.list_(pa.float32(), width)), ("codes", pa.list_(pa.uint16(), LATENT_TOKENS))],
        "pseudo": [("action", pa.list_(pa.float32()))],
    }[use]
    schema = pa.schema([*BASE_FIELDS, *own])
    for shard in opened.shards:
        rows = []
        for i in opened.of_shard(shard):
            row, clip = opened.rows[i], int(opened.rows[i]["key"].split("-")[1], 16)
            for t in range(row["frames"] - 1):
                number = drawing.number_of(clip, t)
                base = {"key": row["key"], "t_s": t / 10, "frame": t, "gap_s": gap_s, "flags": 0}
                rows.append({**base, "latent": latent_of(number), "codes": [0, 1], "action": [number, 0.5]})
        facts = {"index_digest": opened.shard_digest(shard), "labeler_digest": "model", "config": metadata}
        out = f"{shards}/labels/{use}/{shard.replace('.tar', '.parquet')}"
        parquet.write(out, pa.Table.from_pylist(rows, schema=schema), facts)
    return f"{shards}/labels/{use}"


def make_spec(root: Path) -> dict:
    arm = drawing.write_shards(root / "arm", [*ARM, 4], n_val=1)
    human = drawing.write_shards(root / "human", HUMAN, actions=False, first_clip=10, embodiment="human")
    dreams = drawing.write_shards(root / "dreams", DREAMS, actions=False, first_clip=20, embodiment="generated")
    label_tables(human, use="latent")
    label_tables(dreams, use="pseudo", rate_hz=5.0)
    return {
        "tiers": {
            "top": {"weight": 0.5, "sources": {"arm": {"shards": arm, "use": "action"}}},
            "middle": {
                "weight": 0.2,
                "sources": {"dreams": {"shards": dreams, "use": "pseudo", "labels": f"{dreams}/labels/pseudo"}},
            },
            "base": {
                "weight": 0.3,
                "sources": {"human": {"shards": human, "use": "latent", "labels": f"{human}/labels/latent"}},
            },
        },
        "horizon": HORIZON,
        "seed": 3,
    }
