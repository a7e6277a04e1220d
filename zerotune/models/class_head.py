"""Outputs of a classification head at label positions, in any batch layout, with or without virtual tokens.

transformers' sequence heads find the last token as the last one that is not padding. They support one document per row,
and no inputs of embeddings only (prompt tuning). `install` lets them predict at given positions instead.

Shape suffixes: b rows, t positions, d hidden size, n label positions, c outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from zerotune.models.loss_head import causal_lm


class PredictsAtPositions(nn.Module):
    """Mixed in front of a decoder with a head `score` on its hidden states."""

    base_model: Any
    score: nn.Module

    def forward(self, *args: Any, positions_2n: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' own forward pass; with label positions, the outputs [n, c] at them.

        positions_2n: the row of each label position, and its index from the end of the row (negative).
        """
        if positions_2n is None:
            return super().forward(*args, **kwargs)
        kwargs.pop("labels", None)
        hidden_btd: Tensor = self.base_model(*args, **kwargs)[0]
        return SequenceClassifierOutput(logits=self.score(hidden_btd[positions_2n[0], positions_2n[1]]))


def predicts_at_positions(model: nn.Module) -> bool:
    """Whether a sequence classifier's head reads single hidden states, so that `install` works and rows can be packed.

    Encoders have other heads, which read the first token or a pooled state.
    """
    return hasattr(model, "score")


def install(model: nn.Module) -> None:
    """Let a model predict at label positions, if it can; its parameters keep their names."""
    if predicts_at_positions(model) and not isinstance(model, PredictsAtPositions):
        model.__class__ = _at_positions(cast(Any, type(model)))


@cache
def _at_positions(kind: Any) -> Any:
    return type(kind.__name__, (PredictsAtPositions, kind), {})


def token_outputs(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs_nc in float32, gold_n) of a token classifier where targets are not NaN, row by row."""
    logits_btc: Tensor = model(**inputs).logits
    logits_btc = logits_btc[:, -targets_bt.shape[1] :]  # prompt tuning puts virtual positions in front
    labelled_n = (~targets_bt.isnan()).flatten().nonzero()[:, 0]
    return logits_btc.flatten(0, 1).index_select(0, labelled_n).float(), targets_bt.flatten().index_select(
        0, labelled_n
    )


def sequence_outputs(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a sequence classifier: at its label positions, or once for each row that has one."""
    is_labelled_bt = ~targets_bt.isnan()
    gold_n = targets_bt[is_labelled_bt]
    if isinstance(causal_lm(model), PredictsAtPositions):
        row_n, position_n = is_labelled_bt.nonzero(as_tuple=True)
        positions_2n = torch.stack([row_n, position_n - targets_bt.shape[1]])
        return model(**inputs, positions_2n=positions_2n).logits.float(), gold_n
    outputs_bc: Tensor = model(**inputs).logits
    return outputs_bc[is_labelled_bt.any(1)].float(), gold_n
