"""Answers of the policy to prompts: drawn by the evaluation's generator, shared out over ranks, known to all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from train.config_ppo import PpoConfig
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.trajectories import Episode
from train.protocols import Ranks
from zerotune.inference import generation, plain_generation
from zerotune.inference.batch_size import choose_budget
from zerotune.inference.causal_lm import Network
from zerotune.inference.requests import Generate
from zerotune.inference.runner import shares
from zerotune.models.loss_head import causal_lm
from zerotune.models.virtual_tokens import prompt_as_tokens

ANY_MASK = ("sdpa", "eager")  # attentions that take any mask


def requests(
    prompts: Sequence[Prompt], config: PpoConfig, stop_ids: Sequence[int], key: Sequence[int], greedy: bool
) -> list[Generate]:
    """For each prompt, as often as it is to be answered, one after another.

    key: what chance is a function of, beside the prompt and the place: not of ranks or batches.
    """
    times = 1 if greedy else config.samples_per_prompt
    return [
        Generate(
            prompt.ids,
            config.response_tokens,
            tuple(stop_ids),
            prompt.stop_texts,
            temperature=0.0 if greedy else config.temperature,
            seed=_seed(*key, number, time),
            top_k=config.top_k,
            top_p=config.top_p,
        )
        for number, prompt in enumerate(prompts)
        for time in range(times)
    ]


def _seed(*key: int) -> int:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def play(
    model: nn.Module, tokenizer: Any, asked: Sequence[Generate], prompts: Sequence[Prompt], ranks: Ranks
) -> list[Episode]:
    """The episodes of all requests, in order, on every rank. prompts: that of each request."""
    mine = shares(asked, ranks.count)[ranks.index]
    width = max(request.max_new_tokens for request in asked)
    # Tokens of the answer and its end; how many; whether it ended by itself; whether it says nothing.
    found = np.zeros((len(asked), width + 4))
    with ranks.whole(model) as whole, _generating(whole) as base, prompt_as_tokens(whole) as before, torch.no_grad():
        network = Network(base)
        budget = choose_budget(0, base.config, next(base.parameters()).dtype, ranks.device)
        engine = generation if network.shares_prefixes else plain_generation
        own = [replace(asked[k], prefix_ids=(*before, *asked[k].prefix_ids)) for k in mine]
        for ended in engine.generate(network, tokenizer, own, budget):
            for answer in ended:
                ids = [*answer.ids, *([] if answer.end is None else [answer.end])]
                found[mine[answer.index], : len(ids)] = ids
                found[mine[answer.index], -3:] = len(ids), answer.finished, not answer.answer().text.strip()
    joined = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    return [_episode(prompt, line) for prompt, line in zip(prompts, joined, strict=True)]


def _episode(prompt: Prompt, line: NDArray[np.float64]) -> Episode:
    length, finished, is_blank = (int(x) for x in line[-3:])
    answer = tuple(int(x) for x in line[:length])
    return Episode(prompt.ids, answer, bool(finished), prompt.row, prompt.messages, bool(is_blank))


@contextlib.contextmanager
def _generating(model: nn.Module) -> Iterator[Any]:
    """Inside, the language model attends by whatever mask it is given, and drops nothing out."""
    base: Any = causal_lm(model)
    attention, training = base.config._attn_implementation, model.training
    model.eval()
    base.set_attn_implementation(attention if attention in ANY_MASK else ANY_MASK[0])
    try:
        yield base
    finally:
        base.set_attn_implementation(attention)
        model.train(training)
