"""Checks of the recipe's section `causal_lm`. Like train/recipe_checks.py, this file imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

from train.config import Config
from train.registry import Problems


def problems(config: Config) -> Problems:
    """(key, message) of all errors in `causal_lm`."""
    if config.settings.number_token_weight and find_spec("ntloss") is None:
        yield "causal_lm.number_token_weight", "needs ntloss: pip install ntloss, or set it to 0"
