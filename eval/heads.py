"""Models that name classes: of each token, or of a sequence. Padding, on the right and masked, changes nothing.

Shape suffixes: b rows, t positions, c classes, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.budget import Budget, in_batches
from eval.protocols import Answer, Classified, Classify, Request, Tag, Tagged


class TokenClassifier:
    """Answers `Tag` with a token-classification head. model: transformers', in evaluation mode."""

    def __init__(self, model: Any) -> None:
        self._model, self.tokens = model, 0

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """See eval.runner.Model."""
        return _in_batches(requests, Tag, budget, self._tagged)

    def _tagged(self, rows: Sequence[Sequence[int]]) -> list[Answer]:
        ids_bt, mask_bt = _padded(self._model, rows)
        self.tokens += sum(map(len, rows))
        classes_bt = self._model(input_ids=ids_bt, attention_mask=mask_bt).logits.argmax(-1).tolist()
        return [Tagged(tuple(own[: len(row)])) for own, row in zip(classes_bt, rows, strict=True)]


class SequenceClassifier:
    """Answers `Classify` with a sequence-classification head. model: transformers', in evaluation mode."""

    def __init__(self, model: Any) -> None:
        self._model, self.tokens = model, 0

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """See eval.runner.Model."""
        return _in_batches(requests, Classify, budget, self._classified)

    def _classified(self, rows: Sequence[Sequence[int]]) -> list[Answer]:
        ids_bt, mask_bt = _padded(self._model, rows)
        self.tokens += sum(map(len, rows))
        if _pad_id(self._model) is None and hasattr(self._model, "score"):
            logits_bc = self._last(ids_bt, mask_bt)
        else:
            logits_bc = self._model(input_ids=ids_bt, attention_mask=mask_bt).logits
        return [Classified(tuple(own)) for own in logits_bc.double().tolist()]

    def _last(self, ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        """What a causal model says after the last token; without a pad token transformers' heads take only one row."""
        states_btd = self._model.base_model(input_ids=ids_bt, attention_mask=mask_bt).last_hidden_state
        last_b = mask_bt.sum(-1) - 1
        logits_bc: Tensor = self._model.score(states_btd[torch.arange(len(last_b), device=last_b.device), last_b])
        return logits_bc


def _in_batches(
    requests: Sequence[Request],
    kind: type[Tag] | type[Classify],
    budget: Budget,
    answer: Callable[[Sequence[Sequence[int]]], list[Answer]],
) -> Iterator[tuple[int, Answer]]:
    asked = [(k, request.prefix_ids) for k, request in enumerate(requests) if isinstance(request, kind)]

    @torch.inference_mode()
    def run(batch: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, Answer]]:
        return list(zip([k for k, _ in batch], answer([ids for _, ids in batch]), strict=True))

    for answered in in_batches(asked, lambda row: len(row[1]), budget, run):
        yield from answered


def _padded(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and their mask."""
    width, pad = max(map(len, rows)), _pad_id(model) or 0
    ids = [[*row, *[pad] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)


def _pad_id(model: Any) -> int | None:
    pad: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad
