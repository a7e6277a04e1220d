"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.config import ModelConfig, TuningConfig
from train.tuning.describe import write_description
from zerotune.common.errors import UserError


class Full:
    def __init__(
        self, config: TuningConfig, seed: int = 0, *, model: ModelConfig | None = None, task: str = "CAUSAL_LM"
    ) -> None:
        if config.quantization != "none":
            raise UserError(
                f"tuning.quantization: {config.quantization} weights cannot be trained themselves; use tuning.kind lora"
            )

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """The same model with all parameters trained."""
        return model.requires_grad_(True)

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """Write the model's config."""
        write_description(model, folder)
