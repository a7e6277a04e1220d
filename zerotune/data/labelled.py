"""Rows that are a sentence, or two, with one label: how a language model is asked for it, and which class it means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.raw_row import type_name

PAIR = ("sentence1", "sentence2")
SINGLE = ("sentence", "text")
LARGEST = 1e15  # of a value: sums of squares stay within float32
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
    if isinstance(label, float) and label.is_integer():  # pandas writes whole numbers so where some are missing
        label = int(label)
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
    if abs(value) > LARGEST:
        raise RowError(f"label is too large: {value:g}, the limit is {LARGEST:g}")
    return value


def label_prompt(sentences: Sequence[str]) -> str:
    """The text after which a language model writes the label, for one sentence or two; in training and evaluation.

    It ends in a space. Tokenizers join that space to the word behind it, so encode prompt and label as one text.
    """
    names = ["sentence"] if len(sentences) == 1 else [f"sentence{k}" for k in range(1, len(sentences) + 1)]
    parts = [f"{name}: {sentence}" for name, sentence in zip(names, sentences, strict=True)]
    return " ".join([*parts, "Label: "])


def class_name(label: str | int) -> str:
    """The name of a class without a list of names: the label, of 1.0 in a CSV file the whole number, as in JSON."""
    said = str(label)
    whole = said.removesuffix(".0")
    return whole if whole.removeprefix("-").isdecimal() else said


def class_number(label: str | int, names: tuple[str, ...]) -> int | None:
    """The number of the class that a label names; None where there is none."""
    numbers = _class_numbers(names)
    return numbers.get(str(label), numbers.get(class_name(label)))


@lru_cache(maxsize=16)
def _class_numbers(names: tuple[str, ...]) -> Mapping[str, int]:
    """Label -> class. Where classes are called by other numbers than their own (1 to 5), labels are names alone."""
    named = {name: number for number, name in enumerate(names)}
    if any(name.isdecimal() and name != str(number) for name, number in named.items()):
        return named
    return {str(number): number for number in range(len(names))} | named
