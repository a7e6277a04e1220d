"""Classification models, for tokens or for sequences. Padding is on the right and masked, so it changes no result.

Shape suffixes: b rows, t positions, c classes, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zerotune.inference.batch_size import Budget, in_batches
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.requests import Answer, Classified, Classify, Request, Tag, Tagged


class TokenClassifier:
    """Answers `Tag` requests. model: a transformers token classifier in evaluation mode."""

    def __init__(self, model: Any) -> None:
        self._model, self.tokens = model, 0

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """See zerotune.inference.runner.Model."""
        return _in_batches(requests, Tag, budget, self._classify)

    def _classify(self, rows: Sequence[Tag | Classify]) -> list[Answer]:
        self.tokens += sum(row.length for row in rows)
        inputs = _padded(self._model, rows)
        best_bt, classes_bt = self._model(**inputs).logits.max(-1)  # the maximum of logits with a NaN is NaN
        require_finite(bool((best_bt.isfinite() | (inputs["attention_mask"] == 0)).all()))
        return [Tagged(tuple(own[: row.length])) for own, row in zip(classes_bt.tolist(), rows, strict=True)]


class SequenceClassifier:
    """Answers `Classify` requests. model: a transformers sequence classifier in evaluation mode.

    refuses_nan: whether logits that are not finite raise UserError; PPO counts them instead.
    """

    def __init__(self, model: Any) -> None:
        self._model, self.tokens, self.refuses_nan = model, 0, True

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """See zerotune.inference.runner.Model."""
        return _in_batches(requests, Classify, budget, self._classify)

    def _classify(self, rows: Sequence[Tag | Classify]) -> list[Answer]:
        inputs = _padded(self._model, rows)
        self.tokens += sum(row.length for row in rows)
        if _pad_id(self._model) is None and hasattr(self._model, "score"):
            logits_bc = self._logits_of_last_token(inputs)
        else:
            logits_bc = self._model(**inputs).logits
        require_finite(not self.refuses_nan or bool(logits_bc.isfinite().all()))
        return [Classified(tuple(own)) for own in logits_bc.double().tolist()]

    def _logits_of_last_token(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """For causal models without a pad token, of which transformers' own heads take only one row at a time."""
        states_btd = self._model.base_model(**inputs).last_hidden_state
        last_b = inputs["attention_mask"].sum(-1) - 1
        logits_bc: Tensor = self._model.score(states_btd[torch.arange(len(last_b), device=last_b.device), last_b])
        return logits_bc


def _in_batches(
    requests: Sequence[Request],
    kind: type[Tag] | type[Classify],
    budget: Budget,
    answer: Callable[[Sequence[Tag | Classify]], list[Answer]],
) -> Iterator[tuple[int, Answer]]:
    matching = [(k, request) for k, request in enumerate(requests) if isinstance(request, kind)]

    @torch.inference_mode()
    def run(batch: list[tuple[int, Tag | Classify]]) -> list[tuple[int, Answer]]:
        return list(zip([k for k, _ in batch], answer([request for _, request in batch]), strict=True))

    for answers in in_batches(matching, lambda row: row[1].length, budget, run):
        yield from answers


def _padded(model: Any, rows: Sequence[Tag | Classify]) -> dict[str, Tensor]:
    """Padded tokens, their mask, and token_type_ids if a row has a second sentence."""
    width, pad = max(row.length for row in rows), _pad_id(model) or 0
    seconds = [row.second if isinstance(row, Classify) else 0 for row in rows]
    columns = {
        "input_ids": [[*row.prefix_ids, *[pad] * (width - row.length)] for row in rows],
        "attention_mask": [[1] * row.length + [0] * (width - row.length) for row in rows],
    }
    if any(seconds):
        columns["token_type_ids"] = [
            [int(0 < second <= position < row.length) for position in range(width)]
            for row, second in zip(rows, seconds, strict=True)
        ]
    return {name: torch.tensor(column, device=model.device) for name, column in columns.items()}


def _pad_id(model: Any) -> int | None:
    pad: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad
