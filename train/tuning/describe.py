"""Saves what a merge needs besides the weights: the model's class and config."""

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
    config.pop("quantization_config", None)  # only for the base in training; the merged model is not quantised
    write_json(folder / "config.json", config)
    generation = getattr(base, "generation_config", None)
    if generation is not None:
        write_json(folder / "generation_config.json", generation.to_diff_dict())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON; other types are written as strings."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
