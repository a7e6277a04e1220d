"""A tuning: the vectors of a model (norms and biases) are trained, its matrices are frozen (arXiv:2106.10199)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.config import ModelConfig, TuningConfig
from train.merge.base_weights import BaseWeights
from train.merge.source import Source
from train.tuning.describe import write_description


class Biases:
    """Everything with one dimension is trained."""

    def __init__(
        self, config: TuningConfig, seed: int = 0, *, model: ModelConfig | None = None, task: str = "CAUSAL_LM"
    ) -> None:
        pass

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        """None."""
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """The same model."""
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return model

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """The model's config."""
        write_description(model, folder)


class Replaced:
    """The base with the trained vectors in their places."""

    def __init__(self, source: Source, skeleton: Any, base: BaseWeights | None) -> None:
        assert base is not None
        self.trained, self.base, self.used = source.trained, base, set[str]()

    def is_tied(self, target: str, origin: str) -> bool:
        """Matrices stay as they are."""
        return True

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        if name not in self.trained:
            return self.base.get(name).float()
        self.used.add(name)
        return self.trained[name].float()
