"""Which part of a tokenised row is asked, and which is the answer.

Shape suffix: t tokens of a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.data.document import IGNORED


def answer_at(labels_t: NDArray[np.int32]) -> tuple[int, int]:
    """(first token of the last answer, first after it); the former is 1 in a corpus, which asks nothing, and both lie
    behind all tokens of a row without an answer.
    """
    learned = np.flatnonzero(labels_t != IGNORED)
    if not len(learned):
        return len(labels_t), len(labels_t)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), int(learned[-1]) + 1


def answers_in(labels_t: NDArray[np.int32]) -> int:
    """How many answers there are, the last of which `answer_at` finds."""
    return 1 + int(np.count_nonzero(np.diff(np.flatnonzero(labels_t != IGNORED)) > 1))
