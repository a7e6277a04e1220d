"""Requests in, answers out in the same order: each computed once, shared out over ranks by what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from zerotune.inference.budget import Budget
from zerotune.inference.prefixes import sorted_lines
from zerotune.inference.requests import Answer, Generate, Request, Score


class Model(Protocol):
    """What answers, whatever its head."""

    @property
    def tokens(self) -> int:
        """How many have gone through it so far: what prompts share once, padding not."""
        ...

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """(index of the request, answer), as soon as there is one, in any order, each request exactly once.

        Which requests are asked together, and within which budget, changes no answer. Where memory runs out the budget
        shrinks. Raises UserError where one request alone is too much.
        """
        ...


class Group(Protocol):
    """What the runner needs of `eval.ranks.Ranks`."""

    @property
    def index(self) -> int:
        """This process."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def gather(self, mine: list[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
        """The items of all ranks."""
        ...


def answer(
    model: Model,
    budget: Budget,
    requests: Sequence[Request],
    group: Group,
    on_answer: Callable[[Request, Answer], None] = lambda request, answer: None,
) -> list[Answer]:
    """The answers to `requests`, in their order, on every rank. Equal requests are asked once.

    on_answer: told of each answer of this rank as soon as it is there.
    """
    unique = list(dict.fromkeys(requests))
    mine = shares(unique, group.count)[group.index]
    answers: list[tuple[int, Answer]] = []
    for place, found in model.answers([unique[k] for k in mine], budget):
        answers.append((mine[place], found))
        on_answer(unique[mine[place]], found)
    joined = dict(group.gather(answers))
    of = {request: joined[k] for k, request in enumerate(unique)}
    return [of[request] for request in requests]


def shares(requests: Sequence[Request], count: int) -> list[list[int]]:
    """Indices for each rank: stretches of the sorted requests, so that those that begin alike stay together.

    Stretches cost the same but for one request, where what it has in common with the one before costs nothing.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    for kind in dict.fromkeys(map(type, requests)):
        own = [k for k, request in enumerate(requests) if type(request) is kind]
        lines = sorted_lines([(_computed(requests[k]), 0) for k in own])
        costs = [len(line.ids) - line.common + sum(_steps(requests[own[k]]) for k in line.members) for line in lines]
        total = sum(costs)
        for line, end, cost in zip(lines, accumulate(costs), costs, strict=True):
            middle = end - cost / 2  # a line belongs where its middle falls
            parts[min(int(middle * count / max(total, 1)), count - 1)] += [own[k] for k in line.members]
    return parts


def _computed(request: Request) -> tuple[int, ...]:
    """The tokens that go through the model before there is an answer."""
    return request.prefix_ids + request.continuation_ids[:-1] if isinstance(request, Score) else request.prefix_ids


def _steps(request: Request) -> int:
    return request.max_new_tokens if isinstance(request, Generate) else 0
