"""The number token loss: the expected distance between predicted and true digits (arXiv:2411.02083, package ntloss).

Shape suffixes: b rows, t positions, k positions whose target is a digit, v vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from zerotune.common.errors import UserError

DIGITS = "0123456789"


class NumberTokenLoss:
    """Of tokens that are one digit; their probabilities are weighted by distance, with the package's defaults.

    Raises:
        UserError: The tokenizer has no token for a digit.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        missing = [digit for digit in DIGITS if digit not in vocabulary]
        if missing:
            raise UserError(
                f"causal_lm.number_token_weight: the tokenizer has no token for {', '.join(missing)}; choose another "
                "model, or set it to 0"
            )
        self._tokenizer = tokenizer
        self._loss: Any = None
        self._ids_10 = torch.tensor([vocabulary[digit] for digit in DIGITS])

    def is_meant(self, targets: Tensor) -> Tensor:
        """Whether each target is a digit."""
        return torch.isin(targets, self._ids_10.to(targets.device))

    def __call__(self, logits_kv: Tensor, targets_k: Tensor) -> Tensor:
        """Sum over targets that are digits; float32."""
        from ntloss import NTLoss

        if not len(targets_k):
            return logits_kv.float().sum()
        if self._loss is None:  # there may be more logits than tokens
            self._loss = NTLoss(copy.deepcopy(self._tokenizer), vocab_size=logits_kv.shape[1])
        loss: Tensor = self._loss(logits_kv[None].float(), targets_k[None], reduction="sum")
        return loss
