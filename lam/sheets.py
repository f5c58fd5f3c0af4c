"""Pictures of a latent-action model: what each code stands for, and what tokens do to other frames.

Numbers are left to `lam.evaluate`. Shapes: P pairs, S image side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lam import metrics
from lam.model import LatentActionModel
from lam.reading import Side
from lam.transfer import predict_frames, predicts_pixels, tokens_of
from pyramid import files
from pyramid.rng import rng

__all__ = ["cluster", "code_sheet", "transfer_grid", "write_pictures"]

_CELL_PX = 96
_GAP_PX = 4
_LABEL_PX = 88
_PER_CODE = 6
_ROWS = 16
_POSITIONS = 8
"""Sheets of the first positions only; a model may have many."""
_CLUSTERS = 8
_GRID = 6
_ROUNDS = 20


def write_pictures(network: LatentActionModel, held: Side, out: str) -> list[str]:
    """Writes ``codes_N.png`` for each token position and, for models of pixels, ``transfer.png``.

    Continuous latents have no codes; their sheet shows eight clusters of them.

    Returns:
        The names of the files.
    """
    pictures = {}
    for position, labels in enumerate(_labels(held)):
        pictures[f"codes_{position}.png"] = code_sheet(held, labels)
    if predicts_pixels(network):
        pictures["transfer.png"] = transfer_grid(network, held)
    for name, picture in pictures.items():
        data = io.BytesIO()
        picture.save(data, "PNG")
        files.write_bytes(files.join(out, name), data.getvalue())
    return list(pictures)


def _labels(held: Side) -> list[NDArray[np.int64]]:
    if held.rows.codes is None:
        return [cluster(held.latent(), _CLUSTERS)]
    return list(held.rows.codes.astype(np.int64).T[:_POSITIONS])


def cluster(x: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Returns the cluster of each row of float [P, F], int64 [P] in 0 .. count: k-means, the same every time."""
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 1e-8, spread, 1)
    generator = rng(0, "cluster")
    centres = x[[generator.integers(len(x))]]
    while len(centres) < min(count, len(x)):  # k-means++ (Arthur and Vassilvitskii, 2007)
        far = _distances(x, centres).min(1)
        weights = far / far.sum() if far.sum() > 0 else np.full(len(x), 1 / len(x))
        centres = np.concatenate([centres, x[[generator.choice(len(x), p=weights)]]])
    for _ in range(_ROUNDS):
        nearest = _distances(x, centres).argmin(1)
        for place in np.unique(nearest):
            centres[place] = x[nearest == place].mean(0)
    labels: NDArray[np.int64] = _distances(x, centres).argmin(1)
    return labels


def _distances(x: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float64]:
    squares = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
    return np.asarray(np.maximum(squares, 0), np.float64)


def code_sheet(held: Side, labels: NDArray[np.int64]) -> Image.Image:
    """Draws pairs of the commonest codes, a row each: both frames of a pair and what changed.

    Args:
        held: pairs.
        labels: int64 [P], the code of each.
    """
    codes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_ROWS]
    rows, names = [], []
    for code, count in zip(codes[order], counts[order], strict=True):
        shown = _spread(np.flatnonzero(labels == code), held.pairs.clip)
        cells: list[Tensor | None] = []
        for place in shown:
            first, second = held.pairs.first[place], held.pairs.second[place]
            cells += [first, second, _changed(first, second)]
        rows.append(cells + [None] * (3 * _PER_CODE - len(cells)))
        names.append(f"code {code}\n{count / len(labels):.1%}")
    return _grid(rows, names, group=3)


def _spread(places: NDArray[np.int64], clip: NDArray[np.int64]) -> list[int]:
    """Returns up to six places, of as many clips as there are: each clip's middle one first."""
    by_clip = [list(places[clip[places] == number]) for number in dict.fromkeys(clip[places])]
    for group in by_clip:
        group.insert(0, group.pop(len(group) // 2))
    turns = [group[turn] for turn in range(_PER_CODE) for group in by_clip if turn < len(group)]
    whole = len(by_clip)
    if whole > _PER_CODE:
        return [int(turns[i]) for i in np.linspace(0, whole - 1, _PER_CODE).round().astype(int)]
    return [int(place) for place in turns[:_PER_CODE]]


def _changed(first: Tensor, second: Tensor) -> Tensor:
    """Returns the change as a picture, uint8 [3, S, S]: grey where nothing moved, twice as strong as it was."""
    return (128 + (second.int() - first.int())).clamp(0, 255).to(torch.uint8)


def transfer_grid(network: LatentActionModel, held: Side) -> Image.Image:
    """Draws tokens of six pairs (columns: the pair on top) acting on first frames of other clips (rows)."""
    donors = _lively(held)
    partner = metrics.partners(held.pairs.clip)
    targets = [int(partner[donor]) for donor in donors]
    tokens = tokens_of(network, held.rows)
    pairs = held.pairs
    rows: list[list[Tensor | None]] = [[None, *(pairs.first[d] for d in donors)]]
    rows.append([None, *(pairs.second[d] for d in donors)])
    for target in targets:
        here = np.full(len(donors), target)
        same = pairs._replace(
            first=pairs.first[here],
            second=pairs.second[here],
            context=type(pairs.context)(*(None if c is None else c[torch.from_numpy(here)] for c in pairs.context)),
        )
        rows.append([pairs.first[target], *predict_frames(network, same, tokens[donors])])
    names = ["first", "second", *(f"acting on\nframe {i}" for i in range(1, len(targets) + 1))]
    return _grid(rows, names, group=1)


def _lively(held: Side) -> list[int]:
    """Returns pairs with much motion, from as many clips as there are."""
    quick = np.flatnonzero(held.rows.motion >= np.quantile(held.rows.motion, 0.6))
    return _spread(quick, held.pairs.clip)[:_GRID]


def _grid(rows: Sequence[Sequence[Tensor | None]], names: Sequence[str], *, group: int) -> Image.Image:
    columns = max(len(row) for row in rows)
    width = _LABEL_PX + columns * _CELL_PX + (columns // group + 1) * _GAP_PX
    sheet = Image.new("RGB", (width, len(rows) * (_CELL_PX + _GAP_PX) + _GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for down, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = _GAP_PX + down * (_CELL_PX + _GAP_PX)
        pen.multiline_text((_GAP_PX, top + _CELL_PX // 3), name, fill="black")
        for across, cell in enumerate(row):
            if cell is not None:
                left = _LABEL_PX + across * _CELL_PX + (across // group + 1) * _GAP_PX
                picture = Image.fromarray(cell.permute(1, 2, 0).contiguous().numpy())
                sheet.paste(picture.resize((_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR), (left, top))
    return sheet
