"""Warnings about settings that are allowed but probably a mistake."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from train.config import OptimConfig


def about_schedule(optim: OptimConfig, total_steps: int) -> Iterator[str]:
    """Warn if the run ends within its warmup."""
    warmup = optim.warmup_steps
    if warmup is None:
        warmup = math.ceil(optim.warmup_fraction * total_steps)
    if total_steps and warmup >= total_steps and warmup > 1:
        key = "optim.warmup_fraction" if optim.warmup_steps is None else "optim.warmup_steps"
        yield (
            f"WARNING {key}: the warmup takes {warmup:,} steps but the run has only {total_steps:,}; lower it, or the "
            "learning rate rises until the end"
        )


def about_positions(longest: int, model_config: Any) -> Iterator[str]:
    """Warn if rows are longer than the positions that a model with rotary positions was trained for."""
    limit = positions_of(model_config)
    if limit is not None and longest > limit:
        yield (
            f"WARNING data.max_length_tokens: the longest row has {longest:,} tokens, the model was trained for "
            f"{limit:,} (max_position_embeddings in its config.json): later positions are trained from scratch"
        )


def positions_of(model_config: Any) -> int | None:
    """The number of positions that a model was trained for, including RoPE scaling; None without a limit."""
    limit = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    rope = getattr(model_config, "rope_parameters", None) or {}
    scaled = [_scaled(part) for part in (rope, *rope.values()) if isinstance(part, Mapping)]
    return max(limit, *scaled) if scaled else limit


def _scaled(rope: Mapping[str, Any]) -> int:
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return int(original * factor) if isinstance(original, int) and isinstance(factor, int | float) else 0
