"""Evaluation of a latent-action model on held-out clips: five numbers that tell a working one from a broken one.

The measures themselves are in `lam.metrics` and `lam.probes`, what they mean together in `lam.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam import metrics
from lam.config import LAMConfig
from lam.model import LatentActionModel
from lam.pairs import PairSampler
from lam.probes import ProbeData, global_shift, mlp_probe, ridge_probe
from lam.result import LAMEvaluation, Probe, judge
from lam.run import Rows, load_model, pair_context, run_pairs
from lam.signals import mean_action
from lam.views import Context
from pyramid import files
from pyramid.errors import DataError
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import ShardSet
from pyramid.types import Split

__all__ = ["LAMEvaluation", "evaluate_lam"]

_CAMERA_STD_PX = 0.25
"""Spread of the global shift below which there is no camera motion to find."""
_PROBE_ROWS = 32
"""Fewest rows on either side of a probe."""


class _Collected(NamedTuple):
    clip: NDArray[np.int64]
    first: Tensor
    second: Tensor
    context: Context
    actions: list[tuple[str, NDArray[np.float32]] | None]


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

    Probes are fitted on pairs of the ``train`` split (which the model saw without actions) and scored on ``val``;
    folders without training clips have none.

    Args:
        shards: one or more shard folders.
        model: model folder.
        out: folder to write ``lam_evaluation.json`` to; None writes nothing.
        n_pairs: pairs drawn from each split, a fixed list for a seed.
        device: torch device.
        seed: seed of the list of pairs.

    Raises:
        DataError: no model, no held-out clip, or none as long as the gap.
    """
    if n_pairs < 2:
        raise DataError(f"n_pairs must be at least 2, got {n_pairs}")
    network, config, _ = load_model(model, device)
    held = _collect(shards, "val", config, n_pairs, seed)
    rows = _run(network, held)
    fitted = _collect(shards, "train", config, n_pairs, seed) if _has_split(shards, "train") else None
    probes, camera = _probe(network, fitted, held, rows) if fitted else ({}, None)
    known = [probe.linear for probe in probes.values() if probe.linear is not None]
    evaluation = LAMEvaluation(
        model=model,
        pairs=n_pairs,
        clips=len(np.unique(held.clip)),
        split="val",
        n_codes=network.quantizer.n_codes,
        psnr=metrics.psnr(rows.error),
        copy_gap=metrics.psnr_gap(rows.error, rows.copy_error),
        probe_r2=float(np.mean(known)) if known else None,
        probes=probes,
        camera_r2=camera,
        static_share=float((rows.motion < config.pairs.static_threshold).mean()),
        verdict="good",
        reasons=[],
        **_code_measures(network, rows, held, config),
        **_swapped_measures(network, rows, held),
    )
    verdict, reasons = judge(evaluation)
    evaluation = replace(evaluation, verdict=verdict, reasons=reasons)
    if out is not None:
        files.write_json(files.join(out, "lam_evaluation.json"), asdict(evaluation))
    return evaluation


def _has_split(shards: str | Sequence[str], split: Split) -> bool:
    folders = [shards] if isinstance(shards, str) else shards
    return any(row["split"] == split for folder in folders for row in ShardSet.open(folder).rows)


def _collect(shards: str | Sequence[str], split: Split, config: LAMConfig, n_pairs: int, seed: int) -> _Collected:
    clips = ClipFrames.open(shards, split=split, size_px=config.model.image_size_px, cache_mb=config.pairs.cache_mb)
    # The gap of the labels, and every pair: what is measured is what a label table will hold.
    policy = replace(config.pairs, jitter=0.0, static_policy="kept")
    sampler = PairSampler(clips, policy, seed=seed, batch_size=1)
    drawn = sorted((sampler.draw("evaluate", split, i) for i in range(n_pairs)), key=lambda item: item[:2])
    actions: list[tuple[str, NDArray[np.float32]] | None] = []
    for index, pair, _ in drawn:
        sample = clips.sample(index)
        mean = mean_action(sample.action, pair)
        actions.append(None if mean is None else (str(sample.meta["embodiment"]), mean))
    first, second = (torch.stack(frames) for frames in zip(*(frames for _, _, frames in drawn), strict=True))
    context = pair_context(
        config, [pair.gap_s for _, pair, _ in drawn], [clips.rows[index]["text"] or "" for index, _, _ in drawn]
    )
    return _Collected(np.array([index for index, _, _ in drawn], np.int64), first, second, context, actions)


def _run(network: LatentActionModel, collected: _Collected) -> Rows:
    return run_pairs(network, collected.first, collected.second, context=collected.context)


def _code_measures(network: LatentActionModel, rows: Rows, held: _Collected, config: LAMConfig) -> dict[str, Any]:
    if rows.codes is None:
        return dict.fromkeys(("perplexity", "sequences", "sequence_bits", "static_fraction"))
    still = rows.motion < config.pairs.static_threshold
    # A frame with itself is a still pair that every corpus has.
    itself = run_pairs(network, held.first, held.first, context=held.context).codes
    assert itself is not None  # noqa: S101  # the bottleneck has codes
    return {
        "perplexity": metrics.perplexity(rows.codes, network.quantizer.n_codes),
        "sequences": int(metrics.sequence_ids(rows.codes).max() + 1),
        "sequence_bits": metrics.sequence_bits(rows.codes),
        "static_fraction": metrics.static_fraction(np.concatenate([rows.codes[still], itself])),
    }


def _swapped_measures(network: LatentActionModel, rows: Rows, held: _Collected) -> dict[str, Any]:
    partner = metrics.partners(held.clip)
    z = _tokens(network, rows)
    swapped = run_pairs(network, held.first, held.second, z[partner], held.context)
    foreign = held.clip != held.clip[partner]
    theirs = Context(*(None if part is None else part[torch.from_numpy(foreign)] for part in held.context))
    unrelated = run_pairs(network, held.first[foreign], held.second[partner][foreign], context=theirs)
    return {
        "shuffle_gap": metrics.psnr_gap(rows.error, swapped.error),
        "leakage": metrics.leakage(rows.error, rows.copy_error, unrelated.error, unrelated.copy_error),
    }


@torch.inference_mode()
def _tokens(network: LatentActionModel, rows: Rows) -> Tensor:
    device = next(network.parameters()).device
    return network.quantizer(torch.from_numpy(rows.latent).to(device)).z.cpu()  # type: ignore[no-any-return]


def _probe(
    network: LatentActionModel, fitted: _Collected, held: _Collected, held_rows: Rows
) -> tuple[dict[str, Probe], float | None]:
    fitted_rows = _run(network, fitted)
    sides = ((fitted, fitted_rows), (held, held_rows))
    camera = [ProbeData(_flat(rows.latent), global_shift(c.first, c.second), c.clip) for c, rows in sides]
    moving = camera[1].y.std(0).max() > _CAMERA_STD_PX
    probes = {}
    for name in sorted({action[0] for action in held.actions if action}):
        masks = [np.array([a is not None and a[0] == name for a in c.actions]) for c, _ in sides]
        if min(mask.sum() for mask in masks) >= _PROBE_ROWS:
            probes[name] = _action_probe(sides, masks, network.quantizer.n_codes)
    return probes, _mean(ridge_probe(*camera)) if moving else None


def _action_probe(sides: Sequence[tuple[_Collected, Rows]], masks: Sequence[NDArray[np.bool_]], n_codes: int) -> Probe:
    latent, codes = [], []
    for (collected, rows), mask in zip(sides, masks, strict=True):
        y = np.stack([a[1] for a, used in zip(collected.actions, mask, strict=True) if used and a is not None])
        latent.append(ProbeData(_flat(rows.latent[mask]), y, collected.clip[mask]))
        if rows.codes is not None:
            codes.append(latent[-1]._replace(x=_flat(np.eye(n_codes, dtype=np.float32)[rows.codes[mask]])))
    linear = ridge_probe(latent[0], latent[1])
    return Probe(
        linear=_mean(linear),
        mlp=_mean(mlp_probe(latent[0], latent[1])),
        codes=_mean(mlp_probe(codes[0], codes[1])) if codes else None,
        per_dimension=linear,
    )


def _flat(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.reshape(len(x), -1)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None
