"""Temporarily appends the vectors of a tuned prompt to the input embedding, so that the plain language model computes
the same as the tuned one, with any cache.

Shape suffixes: b rows, t positions, n vectors of the prompt, h hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zerotune.models.loss_head import causal_lm, unwrapped


class LongerEmbedding(nn.Module):
    """An input embedding with additional rows, whose output equals what peft prepends to a sequence."""

    def __init__(self, own: nn.Module, rows_nh: Tensor) -> None:
        super().__init__()
        self.own = own
        self.first = int(own.weight.shape[0])  # type: ignore[index]
        self.register_buffer("rows_nh", rows_nh, persistent=False)

    def forward(self, ids_bt: Tensor) -> Tensor:
        """[b, t, h]."""
        is_new_bt = ids_bt >= self.first
        own_bth: Tensor = self.own(ids_bt.masked_fill(is_new_bt, 0))
        new_bth = self.rows_nh[(ids_bt - self.first).clamp(min=0)]  # type: ignore[index]
        return torch.where(is_new_bt[..., None], new_bth.to(own_bth.dtype), own_bth)


@contextlib.contextmanager
def prompt_as_tokens(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Inside, the yielded token ids stand for the vectors of the tuned prompt; empty without prompt tuning.

    The model's weights must not be sharded.
    """
    adapted: Any = unwrapped(model)
    base: Any = causal_lm(model)
    if not getattr(getattr(adapted, "active_peft_config", None), "is_prompt_learning", False):
        yield ()
        return
    with torch.no_grad():
        longer = LongerEmbedding(base.get_input_embeddings(), adapted.get_prompt(batch_size=1)[0])
    base.set_input_embeddings(longer)
    try:
        yield tuple(range(longer.first, longer.first + len(longer.rows_nh)))  # type: ignore[arg-type]
    finally:
        base.set_input_embeddings(longer.own)
