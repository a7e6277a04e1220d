"""Rows with labels: a sentence, or two, with one label; or the words of a sentence with a tag each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.metrics.entities import TAG
from eval.tasks.labelled import PAIR, SINGLE
from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.readers import type_name

Label = str | int | float  # a class's name, its number, or a value
KNOWN_TAGS = "O, and B-, I-, E- or S- before a type (IOB1, IOB2, IOBES)"


@dataclass(frozen=True)
class Labelled:
    """A sentence, or two, and its label."""

    sentences: tuple[str, ...]
    label: Label


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


def read_labelled(fields: Fields) -> Labelled:
    """One sentence or two, and what is said of them."""
    if fields.has(PAIR[0]):
        sentences = tuple(fields.text(name) for name in PAIR)
    else:
        given = next((name for name in SINGLE if fields.has(name)), SINGLE[0])
        sentences = (fields.text(given),)
    label = fields.get("label")
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise RowError(f"label is {type_name(label)}: it must be a class or a number")
    return Labelled(sentences, checked_text(label, "label").strip() if isinstance(label, str) else label)


def read_tagged(fields: Fields) -> Tagged:
    """As many tags as words."""
    words, tags = (_list(fields, name) for name in ("tokens", "tags"))
    if not words:
        raise RowError("empty sentence: `tokens` holds none")
    if len(words) != len(tags):
        raise RowError(f"length mismatch: {len(words)} tokens and {len(tags)} tags; each token needs one tag")
    for place, word in enumerate(words):
        checked_text(word, f"token {place} (from 0)")
    for place, tag in enumerate(tags):
        if isinstance(tag, bool) or not isinstance(tag, (str, int)):
            raise RowError(f"unknown tag: tag {place} (from 0) is {type_name(tag)}")
        if isinstance(tag, str) and not TAG.fullmatch(tag):
            raise RowError(f"unknown tag: tag {place} (from 0) is {tag!r}; known are {KNOWN_TAGS}")
    return Tagged(tuple(words), tuple(tags))


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, (list, tuple)):
        raise RowError(f"field `{name}` is not a list: it is {type_name(value)}")
    return list(value)
