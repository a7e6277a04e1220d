"""Sampled responses of the policy: each rank generates a share, and all ranks get all of them."""

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
from train.objectives.ppo.trajectories import Trajectory
from train.protocols import Ranks
from zerotune.inference import generation, plain_generation
from zerotune.inference.batch_size import choose_budget
from zerotune.inference.causal_lm import Network
from zerotune.inference.requests import Generate
from zerotune.inference.runner import shares
from zerotune.models.loss_head import causal_lm
from zerotune.models.virtual_tokens import prompt_as_tokens

ANY_MASK = ("sdpa", "eager")  # attention implementations that take any mask


def generation_requests(
    prompts: Sequence[Prompt], config: PpoConfig, stop_ids: Sequence[int], key: Sequence[int], greedy: bool
) -> list[Generate]:
    """One request for each response, the responses to one prompt next to each other.

    key: the random numbers depend on it, the prompt's index and the response's index; not on ranks or batches.
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


def sample_responses(
    model: nn.Module, tokenizer: Any, requests: Sequence[Generate], prompts: Sequence[Prompt], ranks: Ranks
) -> list[Trajectory]:
    """The trajectories of all requests, in order, on every rank. prompts: one for each request. A collective."""
    mine = shares(requests, ranks.count)[ranks.index]
    width = max(request.max_new_tokens for request in requests)
    # Tokens of the response with its end token; their number; whether it finished; whether it is blank.
    found = np.zeros((len(requests), width + 4))
    with ranks.whole(model) as whole, _generating(whole) as base, prompt_as_tokens(whole) as before, torch.no_grad():
        network = Network(base)
        budget = choose_budget(0, base.config, next(base.parameters()).dtype, ranks.device)
        engine = generation if network.shares_prefixes else plain_generation
        own = [replace(requests[k], prefix_ids=(*before, *requests[k].prefix_ids)) for k in mine]
        for ended in engine.generate(network, tokenizer, own, budget):
            for answer in ended:
                ids = [*answer.ids, *([] if answer.end is None else [answer.end])]
                found[mine[answer.index], : len(ids)] = ids
                found[mine[answer.index], -3:] = len(ids), answer.finished, not answer.answer().text.strip()
    joined = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    return [_episode(prompt, line) for prompt, line in zip(prompts, joined, strict=True)]


def _episode(prompt: Prompt, line: NDArray[np.float64]) -> Trajectory:
    length, finished, is_blank = (int(x) for x in line[-3:])
    response = tuple(int(x) for x in line[:length])
    return Trajectory(prompt.ids, response, bool(finished), prompt.row, prompt.messages, bool(is_blank))


@contextlib.contextmanager
def _generating(model: nn.Module) -> Iterator[Any]:
    """Yields the language model in evaluation mode, with an attention implementation that takes any mask."""
    base: Any = causal_lm(model)
    attention, training = base.config._attn_implementation, model.training
    model.eval()
    base.set_attn_implementation(attention if attention in ANY_MASK else ANY_MASK[0])
    try:
        yield base
    finally:
        base.set_attn_implementation(attention)
        model.train(training)
