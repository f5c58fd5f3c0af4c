"""Text to token ids, without torch or transformers: a byte-level tokenizer made here, or one read from tokenizer.json.

What the ids mean to a network is the backbone's; this module only pads, cuts and masks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pyramid.errors import DataError

__all__ = ["SPECIAL_TOKENS", "byte_tokenizer", "encode_texts", "tokenizer_from_json", "tokenizer_to_json"]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>")
"""Ids 0 to 3 of the byte-level tokenizer."""

logger = logging.getLogger(__name__)


def byte_tokenizer() -> Tokenizer:
    """Builds a tokenizer whose 256 tokens are bytes; text is lower-cased and stripped, and starts with ``<bos>``.

    It needs no download and knows every language, at the price of one token a byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


@lru_cache(maxsize=1024)
def _tell(tokens: int, length: int, text: str) -> None:
    """Says once of a text that it is cut: a policy may be asked with it many times a second."""
    logger.warning("text of %d tokens is cut to %d: %.60r", tokens, length, text)


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Encodes texts to one length: padded with id 0 on the right, or cut (with one warning in the log).

    Returns:
        Ids int64 [B, length], and the mask bool [B, length] that is True where a token is.
    """
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros((len(texts), length), np.bool_)
    different = list(dict.fromkeys(texts))  # Most of a batch says the same.
    known = dict(zip(different, (e.ids for e in tokenizer.encode_batch(different)), strict=True))
    for text, tokens in known.items():
        if len(tokens) > length:
            _tell(len(tokens), length, text)
            known[text] = _cut(tokenizer, text, length)
    for row, text in enumerate(texts):
        tokens = known[text]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return ids, mask


def _cut(tokenizer: Tokenizer, text: str, length: int) -> list[int]:
    """Cuts the text and keeps what the tokenizer puts around it, such as the end of a chat's turn."""
    around = tokenizer.encode("").ids
    if len(around) >= length:
        return list(tokenizer.encode(text).ids[:length])
    inner = tokenizer.encode(text, add_special_tokens=False)
    inner.truncate(length - len(around))
    return list(tokenizer.post_process(inner).ids)


def tokenizer_to_json(tokenizer: Tokenizer) -> str:
    """Returns the text of a tokenizer.json."""
    return str(tokenizer.to_str(pretty=True)) + "\n"


def tokenizer_from_json(text: str, origin: str) -> Tokenizer:
    """Reads the text of a tokenizer.json; padding and cutting that it declares are switched off (they happen here).

    Raises:
        DataError: the text is no tokenizer; `origin` names the file.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{origin} is not a tokenizer file: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
