"""The recipe's section `causal_lm`. Like train/config.py, this file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat


@dataclass(frozen=True)
class CausalLMConfig:
    """Next-token prediction.

    Args:
        number_token_weight: Weight of the number token loss (arXiv:2411.02083) beside the mean token loss: the expected
            distance between predicted and true digits, averaged over trained tokens of one digit (docs/numbers.md).
            0: no such loss.
    """

    number_token_weight: NonNegativeFloat = 0.0
