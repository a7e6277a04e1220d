"""Scores of predicted labels (columns `gold` and `predicted`: label indices), equal to those of scikit-learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eval.protocols import Columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FEWEST_OF_SQUARES = 100  # rows: few large errors dominate a mean of squares
FEWEST_OF_LABEL = 10  # rows: a mean over labels is as uncertain as its rarest label
UNREADABLE = -1  # predicted label index of an answer without a label


def macro_f1(columns: Columns) -> float:
    """Mean F1 of the labels that occur in `gold` or `predicted`; an unreadable answer lowers recall."""
    expected, predicted, correct = _counts(columns)
    total = expected + predicted
    occurs = total > 0
    return float((2 * correct[occurs] / total[occurs]).mean())


def mcc(columns: Columns) -> float:
    """Matthews' correlation coefficient for any number of labels (Gorodkin 2004, 10.1016/j.compbiolchem.2004.09.006).

    0 if all labels or all predictions are equal. Every answer must name a label.
    """
    expected, predicted, correct = _counts(columns)
    count = float(expected.sum())
    spread = (count**2 - (expected**2).sum()) * (count**2 - (predicted**2).sum())
    return float((correct.sum() * count - (expected * predicted).sum()) / math.sqrt(spread)) if spread > 0 else 0.0


def too_few(columns: Columns) -> str:
    """The reason why some label has too few rows for the interval of a mean over labels, else ""."""
    import numpy as np

    fewest = int(np.unique(columns["gold"], return_counts=True)[1].min())
    if fewest >= FEWEST_OF_LABEL:
        return ""
    return f"too few rows of a label for an interval: {fewest} of at least {FEWEST_OF_LABEL}"


def _counts(columns: Columns) -> tuple[Numbers, Numbers, Numbers]:
    """For each label: rows with it, predictions of it, and correct predictions."""
    import numpy as np  # `--help` loads this module

    label, predicted = (columns[name].astype(np.int64) for name in ("gold", "predicted"))
    size = int(max(label.max(), predicted.max())) + 1
    groups = (label, predicted[predicted != UNREADABLE], label[label == predicted])
    first, second, third = (np.bincount(group, minlength=size).astype(np.float64) for group in groups)
    return first, second, third


def pearson(columns: Columns) -> float:
    """Pearson's correlation of `gold` and `predicted` as values; 0 if one of them is constant."""
    label, predicted = (columns[name] - columns[name].mean() for name in ("gold", "predicted"))
    spread = float((label**2).sum() * (predicted**2).sum())
    return float((label * predicted).sum() / math.sqrt(spread)) if spread > 0 else 0.0


def rmse(columns: Columns) -> float:
    """Root of the mean squared error, in the unit of the values."""
    return math.sqrt(float(((columns["gold"] - columns["predicted"]) ** 2).mean()))
