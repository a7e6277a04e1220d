"""What the hand-over must know of a model beside its weights: its class, and its config as the objective left it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


def base_of(model: nn.Module) -> Any:
    """The transformers model inside an adapter, or the model itself."""
    get = getattr(model, "get_base_model", None)
    return get() if get else model


def write_description(model: nn.Module, folder: Path) -> None:
    """config.json (with labels, size of the vocabulary, class of the model) and generation_config.json."""
    base = base_of(model)
    config = {**base.config.to_dict(), "architectures": [type(base).__name__]}
    config.pop("quantization_config", None)  # how training stored the base; the hand-over is not quantised
    write_json(folder / "config.json", config)
    generation = getattr(base, "generation_config", None)
    if generation is not None:
        write_json(folder / "generation_config.json", generation.to_diff_dict())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Plain JSON; what JSON does not know is written as its name."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
