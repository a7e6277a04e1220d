"""The loss of classes, and weights that let rare classes count.

Shape suffixes: n label positions, c classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zerotune.common.errors import UserError

if TYPE_CHECKING:
    from train.config import HeadConfig
    from train.data.prepare import LabelledDataset


class ClassLoss:
    """Cross entropy, summed; each label position counts by the weight of its class."""

    def __init__(self, config: HeadConfig, rows: LabelledDataset) -> None:
        if len(rows.labels) < 2:
            raise UserError(
                f"data.train: all rows have the label {rows.labels[0]!r}, so there is nothing to tell apart; "
                "name the other classes in head.labels if there are any"
            )
        count_c = torch.from_numpy(_counts(rows)) if config.class_weights == "balanced" else None
        balanced_c = None if count_c is None else count_c.sum() / (len(count_c) * count_c.clamp(min=1))
        self.weight_c: Tensor | None = None if balanced_c is None else balanced_c.float()

    def __call__(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """-sum of weight[label] * log softmax(outputs)[label]."""
        weight_c = None if self.weight_c is None else self.weight_c.to(outputs_nc.device)
        return F.cross_entropy(outputs_nc, gold_n.long(), weight_c, reduction="sum")

    def weight(self, gold_n: Tensor) -> float:
        """Sum of weight[label]."""
        return float(len(gold_n)) if self.weight_c is None else float(self.weight_c[gold_n.long().cpu()].double().sum())


def _counts(rows: LabelledDataset) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    label_values = np.concatenate([rows.label_values(row)[1] for row in range(len(rows))]).astype(np.int64)
    return np.bincount(label_values, minlength=len(rows.labels)).astype(np.float64)
