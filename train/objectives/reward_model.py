"""Reward models, trained on pairs of a chosen and a rejected answer.

Shape suffixes: n label positions (two for each pair), p pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from train.config import Config
from train.data.prepare import LabelledDataset
from train.objectives.head import Head, Predictions
from train.objectives.head_losses import PairLoss
from train.protocols import Ranks, Tuning


class RewardModel(Head):
    """A head with one output, the reward."""

    peft_task_type = "SEQ_CLS"
    output_names = ("reward",)

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks)
        self.criterion = PairLoss()

    def metrics(self, rows: LabelledDataset, predictions: Predictions) -> Mapping[str, float]:
        """accuracy: share of pairs whose chosen answer has the higher reward. margin: mean difference."""
        margin_p = predictions.predicted_n[0::2] - predictions.predicted_n[1::2]
        return {"accuracy": float((margin_p > 0).mean()), "margin": float(margin_p.mean())}

    def show(self, rows: LabelledDataset, row: int, values_n: NDArray[np.float64]) -> str:
        return "chosen {:.4g}, rejected {:.4g}".format(*values_n)
