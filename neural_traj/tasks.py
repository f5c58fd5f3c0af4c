"""Instructions as a policy is given them: without the tags and prompt words that a generator was given besides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyramid.corpora.naming import MAX_INSTRUCTION_CHARS
from pyramid.errors import SkipItemError

_TAG = re.compile(r"<[^<>]{1,40}>")
"""Such as ``<DREAM>``, which GR00T-Dreams puts before every task of a generated episode."""


def clean_task(text: str, prompts: Sequence[str] = ()) -> str:
    """Returns an instruction without tags in angle brackets, prompt words and doubled spaces.

    Args:
        text: what the clip is called.
        prompts: words around the instruction that are the generator's, such as ``A robot arm is asked to``; they are
            taken off either end, whatever their case.

    Raises:
        SkipItemError: ``bad_task``: nothing is left, or it is no printable sentence.
    """
    clean = " ".join(_TAG.sub(" ", text).split())
    for prompt in (" ".join(one.split()) for one in prompts):
        if prompt and clean.lower().startswith(prompt.lower()):
            clean = clean[len(prompt) :].lstrip(" :,.")
        if prompt and clean.lower().endswith(prompt.lower()):
            clean = clean[: -len(prompt)].rstrip(" :,")
    if not clean or not clean.isprintable() or len(clean) > MAX_INSTRUCTION_CHARS:
        detail = f"'{text[:80]}': without tags and prompts no printable instruction of 1 to {MAX_INSTRUCTION_CHARS}"
        raise SkipItemError("bad_task", f"{detail} letters is left")
    return clean
