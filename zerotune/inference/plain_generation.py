"""Generates continuations by transformers' `generate`, for models whose caches cannot be shared (recurrent ones)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from zerotune.inference.batch_size import Budget, in_batches
from zerotune.inference.causal_lm import Network
from zerotune.inference.requests import Generate
from zerotune.inference.sampling import GenerationState, sample
from zerotune.inference.written_numbers import generate_without_cache

Finished = list[GenerationState]


def generate(network: Network, tokenizer: Any, requests: Sequence[Generate], budget: Budget) -> Iterator[Finished]:
    """Like `zerotune.inference.generation.generate`, without shared prefixes and continuous batching.

    Prompts are padded on the left. Padding would change the state of most recurrent models, so their batches hold only
    prompts of equal length.
    """
    model = network.model
    recurrent = getattr(model, "_is_stateful", False) and not getattr(model, "keeps_rows_apart", False)

    def length(k: int) -> int:
        return len(requests[k].prefix_ids) if recurrent else 0

    def run(batch: list[int]) -> Finished:
        rows = [GenerationState(k, requests[k], tokenizer) for k in batch]
        if network.numbers:
            generate_without_cache(network, rows)
        else:
            _run(network, rows)
        return rows

    for _, group in itertools.groupby(sorted(range(len(requests)), key=length), key=length):
        yield from in_batches(list(group), lambda k: requests[k].length, budget, run)


@torch.inference_mode()
def _run(network: Network, rows: Sequence[GenerationState]) -> None:
    prompts = [row.request.prefix_ids for row in rows]
    width = max(map(len, prompts))
    sampler = _Sampler(rows)
    network.tokens += sum(map(len, prompts))
    longest = max(row.request.max_new_tokens for row in rows)
    with _plain_settings(network.model):
        network.model.generate(
            **network.inputs(torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=network.device
            ),
            generation_config=GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList([sampler.processed]),
            stopping_criteria=StoppingCriteriaList([sampler.ended]),
            synced_gpus=False,  # even under ZeRO-3 the weights are whole here, and each rank has its own prompts
        )
    network.tokens += sampler.continued


@contextlib.contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Inside, the model's own sampling settings and penalties are off; `generate` would merge them into ours."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Sampler:
    """Our sampling and stopping, called by transformers' loop. continued: tokens fed back into the model."""

    def __init__(self, rows: Sequence[GenerationState]) -> None:
        self._rows = rows
        self._done = [False] * len(rows)
        self.continued = 0

    def processed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that allow only the sampled token."""
        chosen_b = torch.tensor(sample(self._rows, scores.float()), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_b[:, None], 0.0)

    def ended(self, input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        """Whether each row is finished."""
        for b, (row, token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            self._done[b] = self._done[b] or row.append(token)
            self.continued += not self._done[b]
        return torch.tensor(self._done, device=input_ids.device)
