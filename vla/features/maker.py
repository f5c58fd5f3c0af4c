"""Makes the features that are kept: what a backbone whose weights stand still says of a frame and its clip's text.

The numbers are a function of the frame alone, whatever else is in a batch and whatever is kept: on a CPU, where a
training ends with the same bits however often it was stopped, each frame passes the backbone by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from pyramid import files
from pyramid.config import provenance
from pyramid.errors import ConfigError
from pyramid.nn.trainer import Precision
from pyramid.shards.features import RowLayout
from vla.backbones.interface import Backbone
from vla.config import CacheDtype
from vla.policy import Policy
from vla.text import tokenizer_to_json

__all__ = ["KINDS", "FeatureMaker", "at_once", "rounded"]

VERSION = 1
"""To be raised whenever other numbers come out of the same weights and frames."""
KINDS: dict[torch.dtype, str] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of data types in safetensors files."""
_LIBRARIES = ("torch", "transformers", "av")
_BATCH = 16


def at_once(device: torch.device) -> int:
    """Returns how many frames pass a backbone together."""
    return 1 if device.type == "cpu" else _BATCH


def rounded(rows: Tensor, dtype: CacheDtype) -> Tensor:
    """Returns features as they are kept.

    Raises:
        ConfigError: numbers that the data type has no room for.
    """
    if dtype == "full":
        return rows
    kept = rows.to(torch.float16 if dtype == "float16" else torch.bfloat16)
    if not torch.isfinite(kept).all():
        raise ConfigError(
            f"the backbone's features reach {float(rows.abs().max()):.3g}, which {dtype} does not hold; "
            "set policy.backbone.cache_dtype: bfloat16 or full"
        )
    return kept


class FeatureMaker:
    """A policy's backbone as what makes features.

    Args:
        policy: with a backbone of which nothing trains.
        precision: the training's.
        device: where the features are made.
    """

    def __init__(self, policy: Policy, precision: Precision, device: torch.device) -> None:
        self.policy, self.precision, self.device = policy, precision, device
        size = policy.config.backbone
        self.size_px, self.dtype, self.max_text_tokens = size.image_size_px, size.cache_dtype, size.max_text_tokens

    @cached_property
    def about(self) -> dict[str, object]:
        """Everything besides the clips that decides the numbers, as plain data."""
        libraries = provenance(config={}, inputs={})["libraries"]
        return {
            "version": VERSION,
            "backbone": self.policy.backbone.spec.to_dict(),
            "weights": _weights_digest(self.policy.backbone),
            "tokenizer": files.digest(json.loads(tokenizer_to_json(self.policy.processor.tokenizer))),
            "max_text_tokens": self.max_text_tokens,
            "precision": self.precision,
            "device": self.device.type,
            "dtype": self.dtype,
            "libraries": {name: libraries.get(name, "") for name in _LIBRARIES},
        }

    @cached_property
    def layout(self) -> RowLayout:
        """What the rows are; a black picture is encoded to see."""
        with self.at_work():
            (row,) = self.encode(torch.zeros(1, self.size_px, self.size_px, 3, dtype=torch.uint8), "")
        return RowLayout(maker=files.digest(self.about), dtype=KINDS[row.dtype], width=row.shape[1])

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        """The data type of the rows."""
        return next(dtype for dtype, name in KINDS.items() if name == self.layout.dtype)

    @property
    def inserted(self) -> int:
        """Tokens that stand between those of the text."""
        backbone = self.policy.backbone
        marks = sum(len(before) + len(after) for before, after in backbone.spec.layout.marks)
        return marks + sum(stop - start for start, stop in backbone.image_spans)

    @torch.no_grad()
    def encode(self, frames: Tensor, text: str) -> Tensor:
        """Returns the features of frames of one clip.

        Args:
            frames: uint8 [n, H, W, 3], RGB, one view.
            text: the clip's instruction.

        Returns:
            [n, L, C] on the CPU, in the data type that is kept.
        """
        backbone = self.policy.backbone
        ids, mask = (t.to(self.device) for t in self.policy.processor.text([text], trim=True))
        found = []
        with self._precision():
            for part in torch.split(frames, at_once(self.device)):
                views, n = part[:, None].to(self.device), len(part)
                context, seen = backbone(views, ids.expand(n, -1), mask.expand(n, -1))
                found.append(rounded(context[:, seen[0]], self.dtype).cpu())
        return torch.cat(found)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Has the backbone on the device for a while."""
        backbone = self.policy.backbone
        before = backbone.mean.device
        backbone.to(self.device)
        try:
            yield
        finally:
            backbone.to(before)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)


def _weights_digest(backbone: Backbone) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
