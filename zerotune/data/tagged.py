"""Rows that are the words of a sentence with a tag each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.raw_row import type_name

TAG = re.compile(r"O|[BIES]-\S+")
KNOWN_TAGS = "O, and B-, I-, E- or S- before a type (IOB1, IOB2, IOBES)"


@dataclass(frozen=True)
class Tagged:
    """The words of a sentence, and the tag, or its number, of each."""

    words: tuple[str, ...]
    tags: tuple[str | int, ...]

    @property
    def loose(self) -> int:
        """Entities that begin with I- or E-: how IOB1 writes them, and what is left where IOB2 is broken."""
        count, before = 0, ("", "")
        for tag in map(str, self.tags):
            mark, _, type_ = tag.partition("-")
            count += mark in ("I", "E") and not (before[0] in ("B", "I") and before[1] == type_)
            before = (mark, type_)
        return count


def read_tagged(fields: Fields) -> Tagged:
    """As many tags as words; a tag in digits is a number."""
    words, tags = (_list(fields, name) for name in ("tokens", "tags"))
    if not words:
        raise RowError("empty sentence: `tokens` holds none")
    if len(words) != len(tags):
        raise RowError(f"length mismatch: {len(words)} tokens and {len(tags)} tags; each token needs one tag")
    for place, word in enumerate(words):
        checked_text(word, f"token {place} (from 0)")
    return Tagged(tuple(words), tuple(_tag(tag, place) for place, tag in enumerate(tags)))


def _tag(tag: Any, place: int) -> str | int:
    if isinstance(tag, bool) or not isinstance(tag, (str, int)):
        raise RowError(f"unknown tag: tag {place} (from 0) is {type_name(tag)}")
    if isinstance(tag, str) and TAG.fullmatch(tag):
        return tag
    if str(tag).isdecimal():
        return int(tag)
    raise RowError(f"unknown tag: tag {place} (from 0) is {tag!r}; known are {KNOWN_TAGS}")


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, (list, tuple)):
        raise RowError(f"field `{name}` is not a list: it is {type_name(value)}")
    return list(value)
