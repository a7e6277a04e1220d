"""Classes of texts, and regression: values of texts.

Shape suffixes: n label positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from eval.metrics.labels import macro_f1, mcc, pearson, rmse
from train.config import Config
from train.data.prepare import LabelledDataset
from train.objectives.head import Head, Predictions
from train.objectives.head_losses import ClassLoss, SquaredError
from train.protocols import Ranks, Tuning


class SequenceClassification(Head):
    """A head that predicts the class of a sequence."""

    peft_task_type = "SEQ_CLS"
    problem = "single_label_classification"

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks)
        self.criterion, self.output_names = ClassLoss(config.head, self.rows), self.rows.labels

    def metrics(self, rows: LabelledDataset, predictions: Predictions) -> Mapping[str, float]:
        """The metrics of the evaluation task sequence_classification."""
        columns = {"gold": predictions.gold_n, "predicted": predictions.predicted_n}
        accuracy = float((predictions.gold_n == predictions.predicted_n).mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1(columns), "mcc": mcc(columns)}


class Regression(Head):
    """A head with one output."""

    peft_task_type = "SEQ_CLS"
    problem = "regression"
    output_names = ("value",)

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks)
        self.criterion = SquaredError()

    def metrics(self, rows: LabelledDataset, predictions: Predictions) -> Mapping[str, float]:
        """The metrics of the evaluation task regression."""
        columns = {"gold": predictions.gold_n, "predicted": predictions.predicted_n}
        return {"pearson": pearson(columns), "rmse": rmse(columns)}
