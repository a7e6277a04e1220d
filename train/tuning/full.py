"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.tuning.describe import write_description


class Full:
    def __init__(self, *_: Any, **__: Any) -> None:
        """It has no settings."""

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """The same model with all parameters trained."""
        return model.requires_grad_(True)

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """Write the model's config."""
        write_description(model, folder)
