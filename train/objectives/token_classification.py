"""The class of each word: named entities and other tags.

Shape suffixes: n marks, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from eval.metrics.entities import Counts, count_by_type
from train.config import Config
from train.data.encode import GoldRows, Reading
from train.models import class_head
from train.objectives.classes import ClassLoss
from train.objectives.head import Head, Said
from train.protocols import Batch, Ranks, Tuning


class TokenClassification(Head):
    """A head that names the class of each token; a word's is read at its first."""

    model_class = AutoModelForTokenClassification
    model_use = "TOKEN_CLS"
    judged_by = "f1"
    lower_is_better: Mapping[str, bool] = {
        "loss": True, "f1": False, "precision": False, "recall": False, "token_accuracy": False,
    }  # fmt: skip

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        head = config.head
        super().__init__(
            config, tuning, ranks, Reading(("tagged",), "classes", tuple(head.labels), sub_words=head.sub_words)
        )
        self.class_loss = ClassLoss(head, self.rows)

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """At every marked token."""
        return class_head.token_outputs(model, batch.inputs, batch.targets)

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Cross entropy."""
        return self.class_loss(outputs_nc, gold_n)

    def weight(self, gold_n: Tensor) -> float:
        """Of the gold classes."""
        return self.class_loss.weight(gold_n)

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """The likeliest class."""
        return outputs_nc.argmax(-1)

    def measure(self, rows: GoldRows, said: Said) -> Mapping[str, float]:
        """Entities that are right in type and both ends; the windows of a long sentence are read as one."""
        total, right, words = Counts(), 0, 0
        for _, windows in groupby(range(len(said.starts) - 1), key=rows.where):
            pairs = [pair for row in windows for pair in zip(*said.of_row(row), strict=True)]
            gold, answer = ([rows.labels[int(pair[side])] for pair in pairs] for side in (0, 1))
            total = sum(count_by_type(gold, answer).values(), total)
            right += sum(a == b for a, b in zip(gold, answer, strict=True))
            words += len(gold)
        shares = {"f1": total.f1, "precision": total.precision, "recall": total.recall}
        return {**shares, "token_accuracy": right / max(words, 1)}
