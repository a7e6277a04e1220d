"""The nearest known word to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SLIP = 0.7  # how alike two words must be (difflib's ratio), to be taken for a slip of the finger


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that is most like this one, or "" if none is alike enough. cutoff: difflib's ratio."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean X?`, or nothing if no known word is near."""
    near = nearest(word, known, cutoff)
    return f"; did you mean {near}?" if near else ""
