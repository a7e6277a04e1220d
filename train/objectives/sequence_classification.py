"""The class of a sentence or of a pair of sentences, or a value for it.

Shape suffixes: n marks, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from eval.metrics.labels import macro_f1, mcc, pearson, rmse
from train.config import Config
from train.data.prepare import LabelledDataset, LabelSpec
from train.objectives.classes import ClassLoss
from train.objectives.head import Said, SequenceHead
from train.protocols import Ranks, Tuning


class SequenceClassification(SequenceHead):
    """A head that names the class of a sequence."""

    best_metric = "accuracy"
    problem = "single_label_classification"
    lower_is_better: Mapping[str, bool] = {"loss": True, "accuracy": False, "macro_f1": False, "mcc": False}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(
            config,
            tuning,
            ranks,
            LabelSpec(config.spec.formats, "classes", tuple(config.head.labels)),
        )
        self.class_loss = ClassLoss(config.head, self.rows)

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Cross entropy."""
        return self.class_loss(outputs_nc, gold_n)

    def weight(self, gold_n: Tensor) -> float:
        """Of the gold classes."""
        return self.class_loss.weight(gold_n)

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """The likeliest class."""
        return outputs_nc.argmax(-1)

    def measure(self, rows: LabelledDataset, said: Said) -> Mapping[str, float]:
        """As the evaluation task of this name."""
        columns = {"gold": said.gold_n, "predicted": said.said_n}
        accuracy = float((said.gold_n == said.said_n).mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1(columns), "mcc": mcc(columns)}


class Regression(SequenceHead):
    """A head with one output."""

    best_metric = "pearson"
    problem = "regression"
    lower_is_better: Mapping[str, bool] = {"loss": True, "pearson": False, "rmse": True}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks, LabelSpec(config.spec.formats, "values"))

    def output_names(self) -> tuple[str, ...]:
        """One."""
        return ("value",)

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Squared error."""
        return (outputs_nc[:, 0] - gold_n.float()).square().sum()

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """The output."""
        return outputs_nc[:, 0]

    def measure(self, rows: LabelledDataset, said: Said) -> Mapping[str, float]:
        """As the evaluation task of this name."""
        columns = {"gold": said.gold_n, "predicted": said.said_n}
        return {"pearson": pearson(columns), "rmse": rmse(columns)}
