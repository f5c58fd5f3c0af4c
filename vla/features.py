"""What a frozen backbone says of an observation, worked out once and kept on the local disk.

A file's name is a digest of the backbone's weights, the pictures and the text, so that nothing stale is ever read and
any file may be deleted at any time. Whether anything is kept is `BackboneConfig.cache_features`.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyramid import files
from pyramid.errors import PyramidError
from pyramid.shards.cache import cache_folder
from vla.backbones.interface import Backbone

__all__ = ["FeatureCache"]


class FeatureCache:
    """The context tokens of a backbone whose weights stand still.

    Args:
        backbone: where they come from. Its weights are read once, at the first call.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._digest: str | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> FeatureCache:
        """Goes with the copy of its backbone."""
        import copy

        return FeatureCache(copy.deepcopy(self._backbone, memo))

    def encode(self, images: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Does what the backbone's forward does; what is padding comes out as zeros.

        Args:
            images: uint8 [B, V, H, W, 3], RGB.
            text_ids: int64 [B, T], padded on the right.
            text_mask: bool [B, T].
        """
        paths = [self._path(*row) for row in zip(images, text_ids, text_mask, strict=True)]
        known = [_read(path, self._backbone.mean) for path in paths]
        missing = [row for row, found in enumerate(known) if found is None]
        if missing:
            context, mask = self._backbone(images[missing], text_ids[missing], text_mask[missing])
            for i, row in enumerate(missing):
                known[row] = context[i][mask[i]]
                _write(paths[row], context[i][mask[i]])
        tokens = [found for found in known if found is not None]
        length = text_ids.shape[1] + self._inserted()
        mask = torch.arange(length, device=images.device) < torch.tensor([[len(t)] for t in tokens]).to(images.device)
        padded = [torch.nn.functional.pad(t, (0, 0, 0, length - len(t))) for t in tokens]
        return torch.stack(padded), mask

    def _inserted(self) -> int:
        """Returns the tokens that stand between those of the text."""
        marks = sum(len(before) + len(after) for before, after in self._backbone.spec.layout.marks)
        return marks + sum(stop - start for start, stop in self._backbone.image_spans)

    def _path(self, images: Tensor, text_ids: Tensor, text_mask: Tensor) -> Path:
        if self._digest is None:
            self._digest = _weights_digest(self._backbone)
        name = hashlib.sha256(images.cpu().contiguous().numpy().tobytes())
        name.update(text_ids[text_mask].cpu().numpy().tobytes())
        found = name.hexdigest()
        return cache_folder() / "features" / self._digest / found[:2] / f"{found}.safetensors"


def _weights_digest(backbone: Backbone) -> str:
    total = hashlib.sha256(files.digest(backbone.spec.to_dict()).encode())
    for name, tensor in backbone.state_dict().items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _read(path: Path, like: Tensor) -> Tensor | None:
    with contextlib.suppress(PyramidError, OSError, SafetensorError, KeyError):
        if path.exists():
            found: Tensor = load(files.read_bytes(path))["context"]
            return found.to(like.device)
    return None


def _write(path: Path, context: Tensor) -> None:
    with contextlib.suppress(PyramidError, OSError):
        files.make_dirs(path.parent)
        files.write_bytes(path, save({"context": context.detach().cpu().contiguous()}))
