"""The losses and predictions of heads.

Shape suffixes: n label positions, c outputs of the head, p pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zerotune.common.errors import UserError

if TYPE_CHECKING:
    from train.config import HeadConfig
    from train.data.prepare import LabelledDataset


class HeadLoss(Protocol):
    """A loss of a head."""

    def __call__(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """The summed loss."""
        ...

    def count(self, gold_n: Tensor) -> float:
        """What these label positions add to the divisor of the summed loss."""
        ...

    def predict(self, outputs_nc: Tensor) -> Tensor:
        """[n]: the predicted class or value."""
        ...


class ClassLoss:
    """Cross entropy, weighted by the weight of the gold class. Predicts the most probable class."""

    def __init__(self, config: HeadConfig, rows: LabelledDataset) -> None:
        if len(rows.labels) < 2:
            raise UserError(
                f"data.train: all rows have the label {rows.labels[0]!r}; training needs two or more: list the other "
                "classes in head.labels, or add rows that have them"
            )
        count_c = torch.from_numpy(_counts(rows)) if config.class_weights == "balanced" else None
        balanced_c = None if count_c is None else count_c.sum() / (len(count_c) * count_c.clamp(min=1))
        self.weight_c: Tensor | None = None if balanced_c is None else balanced_c.float()

    def __call__(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """-sum of weight[gold] * log softmax(outputs)[gold]."""
        weight_c = None if self.weight_c is None else self.weight_c.to(outputs_nc.device)
        return F.cross_entropy(outputs_nc, gold_n.long(), weight_c, reduction="sum")

    def count(self, gold_n: Tensor) -> float:
        """Sum of weight[gold]."""
        return float(len(gold_n)) if self.weight_c is None else float(self.weight_c[gold_n.long().cpu()].double().sum())

    def predict(self, outputs_nc: Tensor) -> Tensor:
        return outputs_nc.argmax(-1)


class SquaredError:
    """Squared error of a head with one output, which is the prediction."""

    def __call__(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Sum of (output - gold)^2."""
        return (outputs_nc[:, 0] - gold_n.float()).square().sum()

    def count(self, gold_n: Tensor) -> float:
        return float(len(gold_n))

    def predict(self, outputs_nc: Tensor) -> Tensor:
        return outputs_nc[:, 0]


class PairLoss:
    """Bradley-Terry loss of pairs (arXiv:1706.03741, section 2.2.3): label positions 2p and 2p + 1 are a pair."""

    def __call__(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """Sum of -log sigmoid(reward of chosen - reward of rejected)."""
        chosen_p, rejected_p = outputs_nc[:, 0].unflatten(0, (-1, 2)).unbind(1)
        return -F.logsigmoid(chosen_p - rejected_p).sum()

    def count(self, gold_n: Tensor) -> float:
        return len(gold_n) / 2

    def predict(self, outputs_nc: Tensor) -> Tensor:
        return outputs_nc[:, 0]


def _counts(rows: LabelledDataset) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    gold = np.concatenate([rows.label_values(row)[1] for row in range(len(rows))]).astype(np.int64)
    return np.bincount(gold, minlength=len(rows.labels)).astype(np.float64)
