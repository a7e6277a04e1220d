"""The class of each word: named entities and other tags.

Shape suffixes: n marks, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from eval.metrics.entities import Counts, count_by_type, entities
from train.config import Config
from train.data.prepare import LabelledDataset, LabelSpec
from train.objectives.classes import ClassLoss
from train.objectives.head import Head, Said
from train.protocols import Batch, Ranks, Tuning
from zerotune.models import class_head


class TokenClassification(Head):
    """A head that names the class of each token; a word's is read at its first."""

    model_class = AutoModelForTokenClassification
    peft_task_type = "TOKEN_CLS"
    best_metric = "f1"
    lower_is_better: Mapping[str, bool] = {
        "loss": True, "f1": False, "precision": False, "recall": False, "token_accuracy": False,
    }  # fmt: skip

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        head = config.head
        formats = config.spec.formats
        label_spec = LabelSpec(formats, "classes", tuple(head.labels), sub_words=head.sub_words)
        super().__init__(config, tuning, ranks, label_spec)
        self.class_loss = ClassLoss(head, self.rows)

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """At every marked token."""
        return class_head.token_outputs(model, batch.inputs, batch.targets)

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Cross entropy."""
        return self.class_loss(outputs_nc, gold_n)

    def weight(self, gold_n: Tensor) -> float:
        """Of the true classes."""
        return self.class_loss.weight(gold_n)

    def show_row(self, rows: LabelledDataset, row: int, answers_n: NDArray[np.float64]) -> str:
        """The entities, each with its words."""
        (document,) = rows.documents(row)
        marks = rows.label_values(row)[0]
        starts = np.flatnonzero(~np.isnan(document.targets_t))[marks == 1]
        ends = [*starts[1:], len(document.ids_t)]
        found = []
        for kind, first, last in entities([rows.labels[int(number)] for number in answers_n]):
            ids = document.ids_t[starts[first] : ends[last]].tolist()
            found.append(f"{kind}: {self.tokenizer.decode(ids, skip_special_tokens=True).strip()}")
        return "\n".join(found) or "(none)"

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """The likeliest class."""
        return outputs_nc.argmax(-1)

    def measure(self, rows: LabelledDataset, said: Said) -> Mapping[str, float]:
        """Entities that are right in type and both ends; the windows of a long sentence are read as one."""
        total, right, words = Counts(), 0, 0
        for _, windows in groupby(range(len(said.starts) - 1), key=rows.where):
            pairs = [pair for row in windows for pair in zip(*said.of_row(row), strict=True)]
            truth, answer = ([rows.labels[int(pair[side])] for pair in pairs] for side in (0, 1))
            total = sum(count_by_type(truth, answer).values(), total)
            right += sum(a == b for a, b in zip(truth, answer, strict=True))
            words += len(truth)
        shares = {"f1": total.f1, "precision": total.precision, "recall": total.recall}
        return {**shares, "token_accuracy": right / max(words, 1)}
