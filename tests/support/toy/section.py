"""The recipe's section `focal`. Like train/config_ppo.py, this file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat


@dataclass(frozen=True)
class FocalConfig:
    """The focal loss (arXiv:1708.02002).

    Args:
        gamma: Exponent of the weight of a token; 0 is the cross-entropy.
    """

    gamma: NonNegativeFloat = 2.0
