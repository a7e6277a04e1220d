"""What a classification head says at marked positions: in any batch layout, with or without virtual tokens in front.

transformers' heads for sequences find the last token by its difference from the padding token. They take one document a
row, and none where only embeddings are given (prompt tuning). `install` lets them speak at given positions instead.

Shape suffixes: b rows, t positions, d hidden size, n marked positions, c outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from zerotune.models.loss_head import causal_lm


class SpeaksAtMarks(nn.Module):
    """Mixed in front of a decoder with a head `score` on its hidden states."""

    base_model: Any
    score: nn.Module

    def forward(self, *args: Any, marks_2n: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' own; or, where marks are given, outputs [n, c] at them.

        marks_2n: the row of each mark, and its position counted from the end of the row (a negative number).
        """
        if marks_2n is None:
            return super().forward(*args, **kwargs)
        kwargs.pop("labels", None)
        hidden_btd: Tensor = self.base_model(*args, **kwargs)[0]
        return SequenceClassifierOutput(logits=self.score(hidden_btd[marks_2n[0], marks_2n[1]]))


def speaks_at_marks(model: nn.Module) -> bool:
    """Whether a sequence classifier's head reads single hidden states, so that `install` serves and rows may be packed.

    Encoders have heads of their own, which read the first token, or a summary.
    """
    return hasattr(model, "score")


def install(model: nn.Module) -> None:
    """Let a model that can do so speak at marks; it keeps its parameters and names."""
    if speaks_at_marks(model) and not isinstance(model, SpeaksAtMarks):
        model.__class__ = _at_marks(cast(Any, type(model)))


@cache
def _at_marks(kind: Any) -> Any:
    return type(kind.__name__, (SpeaksAtMarks, kind), {})


def token_outputs(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs_nc in float32, gold_n) of a token classifier where targets are not NaN, row by row."""
    logits_btc: Tensor = model(**inputs).logits
    logits_btc = logits_btc[:, -targets_bt.shape[1] :]  # prompt tuning puts virtual positions in front
    marked_n = (~targets_bt.isnan()).flatten().nonzero()[:, 0]
    return logits_btc.flatten(0, 1).index_select(0, marked_n).float(), targets_bt.flatten().index_select(0, marked_n)


def sequence_outputs(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a sequence classifier: at its marks, or once for each row that has one."""
    is_marked_bt = ~targets_bt.isnan()
    gold_n = targets_bt[is_marked_bt]
    if isinstance(causal_lm(model), SpeaksAtMarks):
        row_n, position_n = is_marked_bt.nonzero(as_tuple=True)
        marks_2n = torch.stack([row_n, position_n - targets_bt.shape[1]])
        return model(**inputs, marks_2n=marks_2n).logits.float(), gold_n
    outputs_bc: Tensor = model(**inputs).logits
    return outputs_bc[is_marked_bt.any(1)].float(), gold_n
