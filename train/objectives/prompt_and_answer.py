"""Where the answers of a tokenised row are.

Shape suffix: t tokens of a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.data.document import IGNORED


def last_answer(labels_t: NDArray[np.int32]) -> tuple[int, int]:
    """(first token of the last answer, the token after it). The first is 1 in a corpus, which has no prompts; both are
    the length of the row if it has no answer.
    """
    learned = np.flatnonzero(labels_t != IGNORED)
    if not len(learned):
        return len(labels_t), len(labels_t)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), int(learned[-1]) + 1


def count_answers(labels_t: NDArray[np.int32]) -> int:
    """The number of answers in a row that has some."""
    return 1 + int(np.count_nonzero(np.diff(np.flatnonzero(labels_t != IGNORED)) > 1))
