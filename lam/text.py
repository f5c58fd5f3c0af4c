"""Instructions as the tokens of a frozen text model; each different instruction is read once.

The model is Hugging Face transformers'; which one is `lam.config`'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lam.config import TextConfig
from pyramid.errors import ConfigError

__all__ = ["TextEmbedder"]


class TextEmbedder:
    """A frozen text model (T5's encoder, or any with one stack) and its tokenizer.

    Args:
        config: model and length.
    """

    def __init__(self, config: TextConfig) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(config.text_model, trust_remote_code=False)
            model = AutoModel.from_pretrained(config.text_model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"text.text_model '{config.text_model}' cannot be loaded: {what}") from error
        # Of an encoder-decoder the encoder alone; of the rest the whole.
        self._model: Any = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self._max_tokens = config.max_tokens
        self.dim = int(model.config.hidden_size)
        """Width of a token."""
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the tokens float32 [B, M, dim] of texts, and which are words, bool [B, M]; on the CPU."""
        for text in dict.fromkeys(texts):
            if text not in self._known:
                self._known[text] = self._read(text)
        found = [self._known[text] for text in texts]
        return torch.stack([tokens for tokens, _ in found]), torch.stack([mask for _, mask in found])

    @torch.no_grad()
    def _read(self, text: str) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer(
            text, padding="max_length", truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        mask = encoded["attention_mask"]
        hidden = self._model(input_ids=encoded["input_ids"], attention_mask=mask).last_hidden_state
        return hidden[0].float(), mask[0].bool()
