"""Rows that are a sentence, or two, with one label."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.raw_row import type_name

PAIR = ("sentence1", "sentence2")
SINGLE = ("sentence", "text")
Label = str | int | float  # a class's name, its number, or a value


@dataclass(frozen=True)
class Labelled:
    """A sentence, or two, and its label."""

    sentences: tuple[str, ...]
    label: Label


def read_labelled(fields: Fields) -> Labelled:
    """One sentence or two, and their label."""
    single = next((name for name in SINGLE if fields.has(name)), None)
    is_pair = fields.has(PAIR[0]) or (single is None and fields.has(PAIR[1]))
    sentences = _pair(fields) if is_pair else (fields.text(single or SINGLE[0]),)
    label = fields.get("label")
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise RowError(f"label is {type_name(label)}: it must be a class or a number")
    return Labelled(sentences, checked_text(label, "label").strip() if isinstance(label, str) else label)


def _pair(fields: Fields) -> tuple[str, ...]:
    for name in PAIR:
        if not fields.holds(name):
            column = fields.columns.get(name, name)
            raise RowError(
                f"field `{column}` is missing: two sentences need {' and '.join(PAIR)}, one is sentence or text"
            )
    return tuple(fields.text(name) for name in PAIR)


def value_of(label: Label) -> float:
    """The label as a finite number, where it is one or the text of one (CSV)."""
    try:
        value = float(label)
    except (ValueError, OverflowError):
        raise RowError(f"label is not a number: {str(label)[:40]!r}") from None
    if not math.isfinite(value):
        raise RowError(f"label is not a number: {value}")
    return value
