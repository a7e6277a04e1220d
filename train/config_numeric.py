"""The recipe's section `numeric`: how numbers are read and predicted.

Like train/config.py, this file imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat

from zerotune.common.schema import Share


@dataclass(frozen=True)
class NumericConfig:
    """Numbers as values with Cauchy distributions (docs/numbers.md).

    Args:
        token_loss: softmax is the cross-entropy of a language model, which keeps a pretrained model's ability to write;
            one_vs_rest is the binary cross-entropy of each token, from the probability that its Cauchy score exceeds
            the threshold.
        threshold: C, the score above which a token comes next (one_vs_rest only).
        value_space: asinh predicts asinh of a value, for values of many orders of magnitude; linear the value itself.
        copy: Whether a value may be copied from an earlier number of the text, by attention; exact for every size.
        weight: lambda, the weight of the values' mean -log density beside the mean token loss.
        gate: alpha; a value counts alpha + (1 - alpha) P(<NUM>). 1 counts all values equally, 0 ignores those where the
            model does not expect a number.
    """

    token_loss: Literal["softmax", "one_vs_rest"] = "softmax"
    threshold: NonNegativeFloat = 0.0
    value_space: Literal["asinh", "linear"] = "asinh"
    copy: bool = True
    weight: NonNegativeFloat = 1.0
    gate: Share = 1.0
