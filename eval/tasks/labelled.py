"""Outcomes of rows with labels: what the classification tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence

from eval.protocols import Sample, Table


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
