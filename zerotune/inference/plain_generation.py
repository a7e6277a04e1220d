"""Continuations by transformers' own `generate`, for models with other caches (recurrent ones, for example)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from zerotune.inference.budget import Budget, in_batches
from zerotune.inference.network import Network
from zerotune.inference.requests import Generate
from zerotune.inference.sampling import Answering, choose

Answers = list[Answering]


def generate(network: Network, tokenizer: Any, requests: Sequence[Generate], budget: Budget) -> Iterator[Answers]:
    """As `zerotune.inference.generation.generate`, without sharing or refilling.

    Prompts are padded on the left; those of a recurrent model, whose state padding would enter, share a batch only if
    they are equally long.
    """
    recurrent = getattr(network.model, "_is_stateful", False)

    def length(k: int) -> int:
        return len(requests[k].prefix_ids) if recurrent else 0

    def run(batch: list[int]) -> Answers:
        rows = [Answering(k, requests[k], tokenizer) for k in batch]
        _run(network, rows)
        return rows

    for _, alike in itertools.groupby(sorted(range(len(requests)), key=length), key=length):
        yield from in_batches(list(alike), lambda k: requests[k].slots, budget, run)


@torch.inference_mode()
def _run(network: Network, rows: Sequence[Answering]) -> None:
    prompts = [row.request.prefix_ids for row in rows]
    width = max(map(len, prompts))
    choosing = _Choosing(rows)
    network.tokens += sum(map(len, prompts))
    longest = max(row.request.max_new_tokens for row in rows)
    with _plain_settings(network.model):
        network.model.generate(
            input_ids=torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=network.device),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=network.device
            ),
            generation_config=GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList([choosing.processed]),
            stopping_criteria=StoppingCriteriaList([choosing.ended]),
            synced_gpus=False,  # under ZeRO-3 too the weights are whole here, and each rank has prompts of its own
        )
    network.tokens += choosing.continued


@contextlib.contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Inside, without the model's own sampling and penalties, which would fill in what is not asked for."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Choosing:
    """Our choice of tokens and of ends, as transformers' loop asks for them. continued: tokens after which one more was
    asked for.
    """

    def __init__(self, rows: Sequence[Answering]) -> None:
        self._rows = rows
        self._done = [False] * len(rows)
        self.continued = 0

    def processed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that leave only the chosen token."""
        chosen_b = torch.tensor(choose(self._rows, scores.float()), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_b[:, None], 0.0)

    def ended(self, input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        """Whether each row has ended with its last token."""
        for b, (row, token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            self._done[b] = self._done[b] or row.take(token)
            self.continued += not self._done[b]
        return torch.tensor(self._done, device=input_ids.device)
