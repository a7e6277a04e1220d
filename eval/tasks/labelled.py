"""Samples and tables of rows with labels, for all classification tasks."""

from __future__ import annotations

from collections.abc import Sequence

from eval.protocols import Sample, Table


def outcome(id: str, sentences: Sequence[str], labels: Sequence[str], gold: int, predicted: int) -> Sample:
    """The sample of a row. gold, predicted: indices of labels; a negative one stands for an unreadable answer."""
    answer = labels[predicted] if predicted >= 0 else ""
    shown = {"text": "\n".join(sentences), "answer": answer, "reference": labels[gold]}
    values = {"accuracy": float(gold == predicted), "gold": float(gold), "predicted": float(predicted)}
    return Sample(id, values, shown)


def by_label(samples: Sequence[Sample]) -> list[Table]:
    """Precision, recall and F1 of each label that occurs."""
    references, answers = ([sample.shown[name] for sample in samples] for name in ("reference", "answer"))
    rows = []
    for label in sorted({*references, *answers} - {""}):
        correct = sum(a == b == label for a, b in zip(references, answers, strict=True))
        actual, predicted = references.count(label), answers.count(label)
        precision, recall = correct / predicted if predicted else 0.0, correct / actual if actual else 0.0
        rows.append((label, actual, precision, recall, 2 * correct / (actual + predicted), predicted))
    return [
        Table("Labels", ("label", "rows", "precision", "recall", "F1", "answered"), rows, shared=2, shares=(2, 3, 4))
    ]
