"""An optimizer: stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from train.config import OptimConfig


def sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Without momentum."""
    return torch.optim.SGD(groups, lr=config.learning_rate)
