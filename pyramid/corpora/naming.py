"""Instructions that a generated clip carries in its file name, after the convention of DreamGen.

Listing folders and making clips of them is left to `pyramid.corpora.scan`.
"""

from __future__ import annotations

import re

MAX_INSTRUCTION_CHARS = 500
"""A longer name is no sentence that a policy is given."""
_NAME = re.compile(r"(\d{1,9})_+([^\W\d_].*)", re.DOTALL)
_LETTER = re.compile(r"[^\W\d_]")


def parse_dreamgen_name(stem: str) -> tuple[int, str] | None:
    """Reads ``N_instruction_with_underscores``, the name that GR00T-Dreams gives to a generated clip.

    A sentence starts with a letter: ``14_0_robocasa_multiview`` numbers a benchmark item twice and instructs nobody.

    Args:
        stem: a file's name without folder and suffix.

    Returns:
        The clip's number and its instruction with single spaces, or None where the name holds no instruction.

    Example:
        >>> parse_dreamgen_name("3_push_the_puck_to_the_green_goal")
        (3, 'push the puck to the green goal')
    """
    match = _NAME.fullmatch(stem)
    if match is None or not match[2].isprintable():
        return None
    instruction = " ".join(match[2].replace("_", " ").split())
    return (int(match[1]), instruction) if len(instruction) <= MAX_INSTRUCTION_CHARS else None


def dreamgen_name(index: int, instruction: str) -> str:
    """Returns the stem that `parse_dreamgen_name` reads back: the words of the instruction joined by underscores.

    Args:
        index: the clip's number, 0 to 999,999,999.
        instruction: words; anything but letters, digits and hyphens separates them.

    Raises:
        ValueError: the instruction does not start with a letter, or the index is out of range.
    """
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", instruction)
    if not words or not _LETTER.match(words[0]):
        raise ValueError(f"instruction '{instruction}' does not start with a letter: no file name could carry it")
    if not 0 <= index <= 999_999_999:
        raise ValueError(f"clip number {index} is not within 0 .. 999999999")
    return "_".join([str(index), *words])
