"""Answers requests in order: each distinct request is computed once, and ranks get equal shares of the cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from zerotune.inference.batch_size import Budget
from zerotune.inference.requests import Answer, Generate, Request, Score
from zerotune.inference.shared_prefixes import sorted_sequences


class Model(Protocol):
    """A model with any head."""

    @property
    def tokens(self) -> int:
        """Tokens processed so far: shared prefixes once, without padding."""
        ...

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the request, answer) for each request exactly once, in any order, as they become available.

        Neither the other requests nor the budget change an answer. The budget shrinks when memory runs out. Raises
        UserError if a single request does not fit into memory.
        """
        ...


class Group(Protocol):
    """The part of `eval.distributed.Ranks` that the runner uses."""

    @property
    def index(self) -> int: ...
    @property
    def count(self) -> int: ...
    def gather(self, mine: list[tuple[int, Answer]]) -> list[tuple[int, Answer]]: ...


def answer(
    model: Model,
    budget: Budget,
    requests: Sequence[Request],
    group: Group,
    on_answer: Callable[[Request, Answer], None] = lambda request, answer: None,
) -> list[Answer]:
    """The answers to `requests`, in their order, on every rank. Equal requests are computed once.

    on_answer: called with each answer of this rank as soon as it is available.
    """
    unique = list(dict.fromkeys(requests))
    mine = shares(unique, group.count)[group.index]
    answers: list[tuple[int, Answer]] = []
    for place, found in model.answers([unique[k] for k in mine], budget):
        answers.append((mine[place], found))
        on_answer(unique[mine[place]], found)
    joined = dict(group.gather(answers))
    by_request = {request: joined[k] for k, request in enumerate(unique)}
    return [by_request[request] for request in requests]


def shares(requests: Sequence[Request], count: int) -> list[list[int]]:
    """Request indices for each rank: contiguous parts of the sorted requests, which keeps common prefixes together.

    Costs of the parts differ by at most one request; a prefix shared with the previous request costs nothing.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    for kind in dict.fromkeys(map(type, requests)):
        own = [k for k, request in enumerate(requests) if type(request) is kind]
        sequences = sorted_sequences([(_computed(requests[k]), 0) for k in own])
        costs = [
            len(sequence.ids) - sequence.common + sum(_steps(requests[own[k]]) for k in sequence.row_indices)
            for sequence in sequences
        ]
        total = sum(costs)
        for sequence, end, cost in zip(sequences, accumulate(costs), costs, strict=True):
            middle = end - cost / 2  # the middle of a sequence decides its rank
            parts[min(int(middle * count / max(total, 1)), count - 1)] += [own[k] for k in sequence.row_indices]
    return parts


def _computed(request: Request) -> tuple[int, ...]:
    """The tokens that a request feeds to the model, generated ones aside."""
    return request.prefix_ids + request.continuation_ids[:-1] if isinstance(request, Score) else request.prefix_ids


def _steps(request: Request) -> int:
    return request.max_new_tokens if isinstance(request, Generate) else 0
