"""Label runs of relabelled clips as sources of a mixture, and what is known of each clip as a table.

Making the labels is left to `relabel`, drawing from them to `pyramid.mixture`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from neural_traj.selection import Selection
from pyramid import files, parquet
from pyramid.config import dump_yaml, provenance
from pyramid.errors import ConfigError
from pyramid.labels.table import LabelRun
from pyramid.shards.layout import table_name
from pyramid.shards.reader import ShardSet

FACTS = "facts.parquet"
MIXTURE = "mixture.yaml"
_USES: dict[str, Literal["pseudo", "latent"]] = {"action": "pseudo", "latent": "latent"}


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """One label run of the clips."""

    name: str
    """Labeler."""
    use: Literal["pseudo", "latent"]
    """What is learned from it."""
    folder: str
    """Its tables."""
    rows: int
    """Labels in them."""
    embodiment: str
    """Slot of a policy: its own, never that of measured actions."""
    digest: str
    """Digest of the labeler."""

    @property
    def frames_folder(self) -> str:
        """Tables with one row for each frame."""
        return f"{self.folder}_frames"

    def told(self) -> dict[str, Any]:
        """Returns what the result tells of it."""
        return {"use": self.use, "embodiment": self.embodiment, "labels": self.folder, "rows": self.rows}


def found_sources(folder: str, names: Sequence[str]) -> list[LabelSource]:
    """Describes the label runs of a shard folder.

    Raises:
        ConfigError: a labeler that gives neither latent nor pseudo-actions.
    """
    shards = ShardSet.open(folder)
    found: list[LabelSource] = []
    bodies = "_".join(sorted({row["embodiment"] for row in shards.rows}))
    for name in names:
        run = LabelRun.open(files.join(folder, "labels", name), shards)
        tables = [run.table(shard) for shard in shards.shards]
        use = next((use for column, use in _USES.items() if column in tables[0].column_names), None)
        if use is None or any(one.use == use for one in found):
            raise ConfigError(f"labeler '{name}' gives no latent or pseudo-actions, or those that another one gives")
        found.append(
            LabelSource(
                name=name,
                use=use,
                folder=run.folder,
                rows=sum(len(table) for table in tables),
                embodiment=f"{bodies}_{use}",
                digest=str(run.metadata.get("labeler_digest", "")),
            )
        )
    return found


def rates_of(folder: str, pseudo: Sequence[LabelSource]) -> dict[float, int]:
    """Returns for each rate of the clips, Hz, how many of them have pseudo-actions at their frames."""
    shards, labelled = ShardSet.open(folder), set[str]()
    for one in pseudo:
        for shard in shards.shards:
            keys = parquet.read(files.join(one.frames_folder, table_name(shard)), ["key"])["key"]
            labelled |= set(pc.unique(keys).to_pylist())
    counts: Counter[float] = Counter()
    for row in shards.rows:
        counts[round(row["rate_hz"], 3)] += row["key"] in labelled
    return dict(sorted(counts.items()))


def write_facts(path: str, folder: str, chosen: Selection, sources: Sequence[LabelSource]) -> None:
    """Writes a row per sample: where it comes from, what labelled it, and every score of its clip."""
    clips, shards = {clip.clip_id: clip for clip in chosen.clips}, ShardSet.open(folder)
    rows = []
    for row in shards.rows:
        scores = chosen.scores[row["clip_id"]]
        told = {f"score.{name}": value for name, value in scores.items() if name not in ("item", "text", "reason")}
        rows.append(
            {
                "key": row["key"],
                "source.clip_id": row["clip_id"],
                "source.content": clips[row["clip_id"]].content,
                "source.view": next((note for note in row["notes"] or () if note.startswith("view ")), ""),
                "source.kind": "generated",
                **{f"source.{one.use}_model": one.digest for one in sources},
                **told,
            }
        )
    content = files.digest(rows)
    table = pa.Table.from_pylist(rows)
    # What nobody measured is no column.
    table = table.select([name for name in table.column_names if table[name].null_count < len(table)])
    parquet.write(path, table, provenance(config={}, inputs={"rows": content}))


def write_mixture(out: str, folder: str, sources: Sequence[LabelSource]) -> str:
    """Writes a mixture of the sources alone, to be drawn from or copied from; returns its path.

    Pseudo-actions are drawn at the model's own steps, at which the robot acts, not at the frames of each clip.
    """
    described = {
        f"dreams_{one.use}": {
            "shards": folder.removeprefix(f"{out}/"),
            "use": one.use,
            "labels": one.folder.removeprefix(f"{out}/"),
            "embodiment": one.embodiment,
        }
        for one in sources
    }
    path = files.join(out, MIXTURE)
    files.write_text(path, dump_yaml({"tiers": {"middle": {"weight": 1.0, "sources": described}}}))
    return path
