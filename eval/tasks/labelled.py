"""Rows that are a sentence, or two, with a label: what the classification tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.protocols import Sample, Table
from zerotune.data.readers import type_name
from zerotune.data.rows import BadExampleError, text_in

PAIR = ("sentence1", "sentence2")
SINGLE = ("sentence", "text")


def sentences_in(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's sentence or two. Raises BadExampleError where there is none."""
    if any(column in value for column in PAIR):
        return tuple(text_in(value, column) for column in PAIR)
    for column in SINGLE:
        if column in value:
            return (text_in(value, column),)
    raise BadExampleError(
        f"there is no sentence: no column {', '.join(SINGLE)} or {' + '.join(PAIR)}, only "
        f"{', '.join(map(str, value)) or 'nothing'}"
    )


def number_in(value: Mapping[str, Any], column: str) -> float:
    """The column's number, of a text (CSV) too. Raises BadExampleError."""
    found = value.get(column)
    if isinstance(found, bool) or not isinstance(found, (int, float, str)):
        raise BadExampleError(f"{column} is {type_name(found) if column in value else 'missing'}, not a number")
    try:
        return float(found)
    except (ValueError, OverflowError) as error:
        raise BadExampleError(f"{column} is {found!r}, not a number") from error


def outcome(id: str, sentences: Sequence[str], labels: Sequence[str], gold: int, predicted: int) -> Sample:
    """A row's numbers: whether it is right, and the labels' numbers (a negative one is no label)."""
    answer = labels[predicted] if predicted >= 0 else ""
    shown = {"text": "\n".join(sentences), "answer": answer, "reference": labels[gold]}
    values = {"accuracy": float(gold == predicted), "gold": float(gold), "predicted": float(predicted)}
    return Sample(id, values, shown)


def by_label(samples: Sequence[Sample]) -> list[Table]:
    """Precision, recall and F1 of each label that occurs."""
    gold, said = ([sample.shown[name] for sample in samples] for name in ("reference", "answer"))
    rows = []
    for label in sorted({*gold, *said} - {""}):
        right = sum(a == b == label for a, b in zip(gold, said, strict=True))
        there, claimed = gold.count(label), said.count(label)
        shares = (right / claimed if claimed else 0.0, right / there if there else 0.0, 2 * right / (there + claimed))
        rows.append((label, there, *shares, claimed))
    return [
        Table("Labels", ("label", "rows", "precision", "recall", "F1", "answered"), rows, shared=2, shares=(2, 3, 4))
    ]
