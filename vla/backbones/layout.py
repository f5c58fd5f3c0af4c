"""Where the views stand between the words: the token layout of a family, told to its tokenizer once.

Afterwards a text is just encoded (`vla.text`), on a robot without transformers too: the words around the instruction
are in the tokenizer's own template, the marks around the views are token ids that the backbone embeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, processors

from pyramid.errors import ConfigError

__all__ = ["CHATS", "Chat", "ViewLayout", "chat_layout", "plain_layout"]

Marks = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids before and after the tokens of one view."""


@dataclass(frozen=True)
class Chat:
    """A family's chat layout: ``before``, then for each view ``opened`` and ``closed`` around it, text, ``after``."""

    before: str
    """What precedes the views."""
    opened: str
    """What opens a view; ``{n}`` is its number, from 1."""
    closed: str
    """What closes a view."""
    after: str
    """What follows the instruction."""


CHATS: Mapping[str, Chat] = {
    "llava": Chat("USER: ", "", "\n", " ASSISTANT:"),
    "smolvlm": Chat(
        "<|im_start|>User:",
        "<fake_token_around_image><global-img>",
        "<fake_token_around_image>",
        "<end_of_utterance>\nAssistant:",
    ),
    "qwen3_vl": Chat("<|im_start|>user\n", "<|vision_start|>", "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"),
    "eagle": Chat(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<image {n}><img>",
        "</img>",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
}
"""The layouts that the families were tuned with (their published chat templates), for one turn with undivided views."""


@dataclass(frozen=True)
class ViewLayout:
    """Where views stand in the token sequence; the same for every text."""

    at: int
    """Text tokens before the first view."""
    marks: tuple[Marks, ...]
    """For each view, the token ids before and after it."""

    def spans(self, tokens_per_view: int) -> tuple[tuple[int, int], ...]:
        """Returns the first position and the one past the last of every view's tokens."""
        spans, at = [], self.at
        for before, after in self.marks:
            start = at + len(before)
            spans.append((start, start + tokens_per_view))
            at = start + tokens_per_view + len(after)
        return tuple(spans)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {"at": self.at, "marks": [[list(before), list(after)] for before, after in self.marks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViewLayout:
        """Reads what `to_dict` wrote."""
        return cls(int(data["at"]), tuple((tuple(before), tuple(after)) for before, after in data["marks"]))


def plain_layout(tokenizer: Tokenizer, family: str, n_views: int) -> ViewLayout:
    """Returns the layout "what the tokenizer puts first, views, text", with the family's marks if it has them."""
    first = tokenizer.encode("a").special_tokens_mask
    leading = first.index(0) if 0 in first else len(first)
    opened, closed = CHATS[family].opened, CHATS[family].closed
    marks = (tuple(_ids(tokenizer, text, strict=False)) for text in (opened, closed))
    return ViewLayout(leading, ((next(marks), next(marks)),) * n_views)


def chat_layout(tokenizer: Tokenizer, family: str, n_views: int) -> ViewLayout:
    """Returns the family's chat layout, and puts the words around an instruction into the tokenizer's template.

    Raises:
        ConfigError: the tokenizer lacks a token of the layout; it is named.
    """
    chat = CHATS[family]
    leading = tokenizer.encode("a")
    first = [i for i, special in zip(leading.ids, leading.special_tokens_mask, strict=True) if special]
    start = first[:1] if leading.special_tokens_mask[0] and not chat.before.startswith("<") else []
    # What stands between two views, or before the first, is encoded in one piece, as it would be in the whole prompt.
    opened = [chat.opened.format(n=view + 1) for view in range(n_views)]
    before = [*start, *_ids(tokenizer, chat.before + opened[0], strict=True)]
    between = [tuple(_ids(tokenizer, chat.closed + mark, strict=True)) for mark in opened[1:]]
    _wrap(tokenizer, before, _ids(tokenizer, chat.after, strict=True))
    last = tuple(_ids(tokenizer, chat.closed, strict=True))
    return ViewLayout(len(before), tuple(zip([(), *between], [*[()] * len(between), last], strict=True)))


def _ids(tokenizer: Tokenizer, text: str, *, strict: bool) -> list[int]:
    """Returns the tokens of a piece of layout; without its marks it is nothing, or (strict) an error."""
    missing = [mark for mark in _names(text) if tokenizer.token_to_id(mark) is None]
    if missing and strict:
        raise ConfigError(
            f"the backbone's tokenizer has no token {missing[0]!r}, which the chat layout needs; "
            "use backbone.layout=plain or the tokenizer that belongs to the model"
        )
    # A layout of words alone is a chat's; the plain one takes marks only.
    if missing or (not strict and not _names(text)):
        return []
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _names(text: str) -> list[str]:
    """Returns the marks in a piece of layout (``<image 1>`` is words, not a mark)."""
    return [f"<{part.split('>')[0]}>" for part in text.split("<")[1:] if " " not in part.split(">")[0]]


def _wrap(tokenizer: Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
    pieces = {"before": list(before), "after": list(after)}
    special = [
        {"id": name, "ids": ids, "tokens": [str(tokenizer.id_to_token(i)) for i in ids]} for name, ids in pieces.items()
    ]
    template = [*(["before"] if before else []), "$A", *(["after"] if after else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[piece for piece in special if piece["ids"]]
    )
