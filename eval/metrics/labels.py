"""Scores of label predictions from the columns `gold` and `predicted`: the labels' numbers, equal to scikit-learn's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eval.protocols import Columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FEWEST_OF_SQUARES = 100  # rows: a few large errors decide a mean of squares
FEWEST_OF_LABEL = 10  # rows: a mean over labels is no surer than its rarest one
UNREADABLE = -1  # the predicted label's number where an answer names none


def macro_f1(columns: Columns) -> float:
    """Mean of the F1 of every label that occurs in `gold` or `predicted`; an unreadable answer costs recall."""
    there, said, right = _counts(columns)
    occurs = there + said > 0
    return float((2 * right[occurs] / (there + said)[occurs]).mean())


def mcc(columns: Columns) -> float:
    """Matthews' correlation coefficient for any number of labels (Gorodkin 2004, 10.1016/j.compbiolchem.2004.09.006).

    0 where all rows have one label, or all predictions are one. Every answer must name a label.
    """
    there, said, right = _counts(columns)
    count = float(there.sum())
    spread = (count**2 - (there**2).sum()) * (count**2 - (said**2).sum())
    return float((right.sum() * count - (there * said).sum()) / math.sqrt(spread)) if spread > 0 else 0.0


def too_few(columns: Columns) -> str:
    """Whether some label has too few rows for an interval of a mean over labels: which number of rows, or nothing."""
    import numpy as np

    fewest = int(np.unique(columns["gold"], return_counts=True)[1].min())
    if fewest >= FEWEST_OF_LABEL:
        return ""
    return f"too few rows of a label for an interval: {fewest}, needed are {FEWEST_OF_LABEL} of each"


def _counts(columns: Columns) -> tuple[Numbers, Numbers, Numbers]:
    """Of each label: rows that have it, answers that name it, and rows where both do."""
    import numpy as np  # `--help` loads this module

    gold, predicted = (columns[name].astype(np.int64) for name in ("gold", "predicted"))
    size = int(max(gold.max(), predicted.max())) + 1
    groups = (gold, predicted[predicted != UNREADABLE], gold[gold == predicted])
    there, said, right = (np.bincount(group, minlength=size).astype(np.float64) for group in groups)
    return there, said, right


def pearson(columns: Columns) -> float:
    """Pearson's correlation of `gold` and `predicted` as values; 0 where one of them is the same everywhere."""
    gold, predicted = (columns[name] - columns[name].mean() for name in ("gold", "predicted"))
    spread = float((gold**2).sum() * (predicted**2).sum())
    return float((gold * predicted).sum() / math.sqrt(spread)) if spread > 0 else 0.0


def rmse(columns: Columns) -> float:
    """Root of the mean squared error, in the unit of the values."""
    return math.sqrt(float(((columns["gold"] - columns["predicted"]) ** 2).mean()))
