"""A reward from preferences: the answer that was chosen shall get more than the one that was rejected.

Shape suffixes: n marks (two for each pair), c outputs of the head, p pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from train.config import Config
from train.data.prepare import LabelledDataset, LabelSpec
from train.objectives.head import Said, SequenceHead
from train.protocols import Ranks, Tuning


class RewardModel(SequenceHead):
    """A head with one output, trained on pairs by the Bradley-Terry model (arXiv:1706.03741, section 2.2.3)."""

    best_metric = "accuracy"
    lower_is_better: Mapping[str, bool] = {"loss": True, "accuracy": False, "margin": False}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks, LabelSpec(config.spec.formats, "values"))

    def output_names(self) -> tuple[str, ...]:
        """One."""
        return ("reward",)

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Sum of -log sigmoid(reward of the chosen - reward of the rejected)."""
        chosen_p, rejected_p = outputs_nc[:, 0].unflatten(0, (-1, 2)).unbind(1)
        return -F.logsigmoid(chosen_p - rejected_p).sum()

    def weight(self, gold_n: Tensor) -> float:
        """The pairs."""
        return len(gold_n) / 2

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """The reward."""
        return outputs_nc[:, 0]

    def measure(self, rows: LabelledDataset, said: Said) -> Mapping[str, float]:
        """accuracy: share of the pairs whose chosen answer gets more. margin: how much more, on average."""
        margin_p = said.said_n[0::2] - said.said_n[1::2]
        return {"accuracy": float((margin_p > 0).mean()), "margin": float(margin_p.mean())}

    def show(self, answers_n: NDArray[np.float64]) -> str:
        """The chosen one's first."""
        return "chosen {:.4g}, rejected {:.4g}".format(*answers_n)
