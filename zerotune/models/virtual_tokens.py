"""A tuned prompt as tokens: its vectors become rows of the input embedding for a while, so that the language model
alone computes, with any cache, what the tuned one does.

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
    """An input embedding with further rows behind its own. What comes out is what peft puts in front of a sequence."""

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
    """Inside, the language model knows the vectors of the tuned prompt as these tokens; none where no prompt is tuned.

    The model's weights are whole.
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
