"""Checks of the recipe's section `numeric`. Like train/recipe_checks.py, this file imports nothing heavy."""

from __future__ import annotations

from train.config import Config
from train.config_numeric import NumericConfig
from train.registry import Problems


def problems(config: Config) -> Problems:
    """(key, message) of all errors in `numeric`, and of other keys that the objective does not support."""
    numeric: NumericConfig = config.settings
    is_softmax = numeric.token_loss == "softmax"
    if is_softmax and numeric.threshold:
        yield "numeric.threshold", "applies only to numeric.token_loss: one_vs_rest; remove it"
    if config.validation.exact_match_rows:
        yield "validation.exact_match_rows", "objective numeric has no exact match; see within_1_percent, and remove it"
    if config.tuning.extra_positions:
        yield "tuning.kind", "objective numeric has no values for the positions of a tuned prompt; use full or lora"
    if not is_softmax and config.validation.metric == "perplexity":
        yield "validation.metric", "perplexity needs numeric.token_loss: softmax; choose another metric, such as loss"
