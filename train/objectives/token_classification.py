"""Classes of words: named entities and other tags.

Shape suffixes: n label positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from eval.metrics.entities import Counts, count_by_type, entities
from train.config import Config
from train.data.prepare import LabelledDataset
from train.objectives.head import TOKENS, Head, Predictions
from train.objectives.head_losses import ClassLoss
from train.protocols import Ranks, Tuning


class TokenClassification(Head):
    """A head that predicts the class of each token. A word's class is that of its first token."""

    readout = TOKENS
    peft_task_type = "TOKEN_CLS"

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks)
        self.criterion, self.output_names = ClassLoss(config.head, self.rows), self.rows.labels

    def show(self, rows: LabelledDataset, row: int, values_n: NDArray[np.float64]) -> str:
        """The entities, each with its type and its words."""
        (document,) = rows.documents(row)
        label_mask_n = rows.label_values(row)[0]
        starts = np.flatnonzero(~np.isnan(document.targets_t))[label_mask_n == 1]
        ends = [*starts[1:], len(document.ids_t)]
        found = []
        for kind, first, last in entities([rows.labels[int(number)] for number in values_n]):
            ids = document.ids_t[starts[first] : ends[last]].tolist()
            found.append(f"{kind}: {self.tokenizer.decode(ids, skip_special_tokens=True).strip()}")
        return "\n".join(found) or "(none)"

    def metrics(self, rows: LabelledDataset, predictions: Predictions) -> Mapping[str, float]:
        """Entities count as correct if type and both ends are. The windows of a long sentence are joined first."""
        total, right, words = Counts(), 0, 0
        for _, windows in groupby(range(len(predictions.starts) - 1), key=rows.where):
            pairs = [pair for row in windows for pair in zip(*predictions.of_row(row), strict=True)]
            gold, answer = ([rows.labels[int(pair[side])] for pair in pairs] for side in (0, 1))
            total = sum(count_by_type(gold, answer).values(), total)
            right += sum(a == b for a, b in zip(gold, answer, strict=True))
            words += len(gold)
        shares = {"f1": total.f1, "precision": total.precision, "recall": total.recall}
        return {**shares, "token_accuracy": right / max(words, 1)}
