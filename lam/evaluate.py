"""The verb ``evaluate lam``: what a latent-action model's tokens are worth, measured on held-out clips.

The measures themselves are in `lam.metrics`, `lam.probes` and `lam.transfer`, what they mean together in `lam.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lam import metrics
from lam.held_out import collect, has_split, run
from lam.model import LatentActionModel
from lam.reading import Side, action_probes, camera_measures, transfer_probes, verb_accuracy
from lam.result import LAMEvaluation, judge
from lam.run import load_model, run_pairs
from lam.sheets import write_pictures
from lam.transfer import cycle_measures, swapped_measures
from pyramid import files
from pyramid.errors import ConfigError

__all__ = ["LAMEvaluation", "evaluate_lam", "evaluate_model"]

REPORT = "lam_evaluation.json"


def evaluate_lam(
    shards: str | Sequence[str],
    *,
    model: str,
    out: str | None = None,
    n_pairs: int = 768,
    device: str = "cpu",
    seed: int = 0,
) -> LAMEvaluation:
    """Measures a trained latent-action model on the ``val`` split of shard folders.

    Probes are fitted on pairs of the ``train`` split (of which the model saw no action, or few) and scored on ``val``;
    folders without training clips have none.

    Args:
        shards: one or more shard folders.
        model: model folder.
        out: folder to write ``lam_evaluation.json`` and pictures to; None writes nothing.
        n_pairs: pairs drawn from each split, a fixed list for a seed; >= 2.
        device: torch device.
        seed: seed of the list of pairs.

    Raises:
        ConfigError: fewer than two pairs asked for.
        DataError: no model, no held-out clip, or none as long as the gap.
    """
    if n_pairs < 2:
        raise ConfigError(f"n_pairs must be at least 2, got {n_pairs}")
    network, _, _ = load_model(model, device)
    evaluation = evaluate_model(network, shards, model=model, out=out, n_pairs=n_pairs, seed=seed)
    if out is not None:
        files.write_json(files.join(out, REPORT), asdict(evaluation))
    return evaluation


def evaluate_model(
    network: LatentActionModel,
    shards: str | Sequence[str],
    *,
    model: str = "",
    out: str | None = None,
    n_pairs: int = 768,
    seed: int = 0,
) -> LAMEvaluation:
    """Does what `evaluate_lam` does for a model in memory, but for the JSON; ``model`` is the name to report."""
    config, network = network.config, network.eval()
    pairs = collect(shards, "val", config, n_pairs, seed)
    held = Side(pairs, run(network, pairs))
    fitted = None
    if has_split(shards, "train"):
        seen = collect(shards, "train", config, n_pairs, seed)
        fitted = Side(seen, run(network, seen))
    probes = action_probes(fitted, held, network.quantizer.n_codes) if fitted else {}
    known = [probe.linear for probe in probes.values() if probe.linear is not None]
    evaluation = LAMEvaluation(
        model=model,
        pairs=n_pairs,
        clips=len(np.unique(pairs.clip)),
        split="val",
        n_codes=network.quantizer.n_codes,
        psnr=metrics.psnr(held.rows.error),
        copy_gap=metrics.psnr_gap(held.rows.error, held.rows.copy_error),
        probe_r2=float(np.mean(known)) if known else None,
        probes=probes,
        transfers=transfer_probes(fitted, held) if fitted else [],
        verbs=verb_accuracy(fitted, held) if fitted else None,
        static_share=float((held.rows.motion < config.pairs.static_threshold).mean()),
        pictures=write_pictures(network, held, out) if out is not None else [],
        verdict="usable",
        reasons=[],
        **_code_measures(network, held),
        **camera_measures(network, fitted, held),
        **swapped_measures(network, held.rows, pairs),
        **cycle_measures(network, held.rows, pairs),
    )
    verdict, reasons = judge(evaluation)
    return replace(evaluation, verdict=verdict, reasons=reasons)


def _code_measures(network: LatentActionModel, held: Side) -> dict[str, Any]:
    pairs, rows = held
    if rows.codes is None:
        return dict.fromkeys(("perplexity", "usage", "sequences", "sequence_bits", "static_fraction"))
    still = rows.motion < network.config.pairs.static_threshold
    # A frame with itself is a still pair that every corpus has.
    itself = run_pairs(network, pairs.first, pairs.first, context=pairs.context).codes
    assert itself is not None  # noqa: S101  # the bottleneck has codes
    n_codes = network.quantizer.n_codes
    return {
        "perplexity": metrics.perplexity(rows.codes, n_codes),
        "usage": [len(np.unique(column)) / n_codes for column in rows.codes.T],
        "sequences": int(metrics.sequence_ids(rows.codes).max() + 1),
        "sequence_bits": metrics.sequence_bits(rows.codes),
        "static_fraction": metrics.static_fraction(np.concatenate([rows.codes[still], itself])),
    }
