"""Trained latent-action models to and from folders and the Hugging Face hub: safetensors, config, model card.

The files are those that `lam.train` writes, with a card beside them; nothing in them is run when they are read.
"""

from __future__ import annotations

from typing import Any, Self

from lam.config import LAMConfig
from lam.model import LatentActionModel
from lam.run import load_model
from pyramid import files
from pyramid.nn.checkpoint import read_model_config, save_model
from pyramid.nn.hub import CARD_FILE, local_folder, push_folder

__all__ = ["CARD_FILE", "PretrainedLAM", "model_card"]


class PretrainedLAM:
    """A trained latent-action model that can be saved, loaded and shared.

    Args:
        model: the model.
        config: what it was trained with.
        provenance: tool, versions and data that it comes from.
    """

    def __init__(self, model: LatentActionModel, config: LAMConfig, provenance: dict[str, Any]) -> None:
        self.model, self.config, self.provenance = model.eval(), config, provenance

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None, device: str = "cpu") -> Self:
        """Loads a model folder, or a model of the hub by its id (``owner/name``).

        Args:
            name: folder or id; a folder of that name wins.
            revision: branch, tag or commit of the hub; pin one to get the same model tomorrow.
            device: torch device.

        Raises:
            DataError: what is there is no complete latent-action model.
        """
        folder = local_folder(name, revision)
        model, config, _ = load_model(folder, device)
        return cls(model, config, read_model_config(folder, "lam")["provenance"])

    def save_pretrained(self, folder: str) -> str:
        """Writes weights, config and card to a folder; returns the digest of the weights."""
        from pyramid.config import to_dict

        files.make_dirs(folder)
        files.write_bytes(files.join(folder, CARD_FILE), model_card(self.model, self.config).encode())
        return save_model(
            folder,
            kind="lam",
            config=to_dict(self.config),
            module=self.model,
            provenance=self.provenance,
            extra={"facts": to_dict(self.model.facts)},
        )

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Uploads weights, config and card in one commit; returns the commit's address.

        Args:
            repo_id: ``owner/name``; made if missing.
            private: whether a repository that is made now is private.
            token: access token; None takes the one that ``hf auth login`` stored.
        """
        return push_folder(self.save_pretrained, repo_id, private=private, token=token, message="A latent-action model")


def model_card(model: LatentActionModel, config: LAMConfig) -> str:
    """Returns a model card: what the model is, its sizes, how to use it, what it does not promise."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    quantizer, sizes = config.quantizer, config.model
    bottleneck = f"{sizes.n_tokens} tokens of width {quantizer.dim}, {quantizer.kind}"
    if quantizer.n_codes:
        bottleneck += f", {quantizer.n_codes} codes at each of {sizes.n_tokens * quantizer.codes_per_token} positions"
    target = config.target.vision_model if config.target.kind == "features" else "pixels"
    return f"""---
library_name: latent-pyramid
tags:
- robotics
- latent-actions
---

# Latent-action model

What changed between two frames {config.pairs.gap_s:g} s apart, as a few numbers and codes.

- bottleneck: {bottleneck}
- predicts: the change of {target}, from the first frame and the tokens alone
- encoder {sizes.encoder}, decoder {sizes.decoder}, {trained:,} trained parameters, frames of {sizes.image_size_px} px
- labels of actions used in training: {"a few" if config.objectives.action_weight else "none"}

```
from lam.hub import PretrainedLAM

model = PretrainedLAM.from_pretrained("this folder or id")
```

`config.json` says everything that it was trained with. Nothing is promised about robots, views or speeds unlike those
of the training videos: measure with `pyramid evaluate lam` before labels are trusted.
"""
