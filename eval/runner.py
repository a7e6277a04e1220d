"""Requests in, answers out in the same order: shared out over ranks by cost, sorted, batched within a budget of tokens.

Nothing here changes an answer. Where memory runs out the budget is halved and the batch tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from eval.errors import UserError
from eval.protocols import Answer, Generate, Generated, Request, Score, Scored


class Model(Protocol):
    """What answers: `eval.model.LanguageModel`."""

    def score(self, requests: Sequence[Score]) -> list[Scored]:
        """See LanguageModel."""
        ...

    def generate(self, requests: Sequence[Generate]) -> list[Generated]:
        """See LanguageModel."""
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
    requests: Sequence[Request],
    batch_tokens: int,
    group: Group,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """The answers to `requests`, in their order, on every rank.

    batch_tokens: most token positions of one batch, padding and tokens to be generated included.
    on_progress: told after each batch of this rank how many requests it answered.
    """
    mine = shares([request.slots for request in requests], group.count)[group.index]
    answers: list[tuple[int, Answer]] = []
    waiting = sorted(mine, key=lambda i: (_kind(requests[i]), -requests[i].slots, i))
    while waiting:
        batch = next_batch([requests[i] for i in waiting], batch_tokens)
        try:
            answers += zip(waiting, _ask(model, batch), strict=False)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(f"one request of {batch[0].slots} tokens does not fit into memory ({error})") from error
            batch_tokens = batch[0].slots * len(batch) // 2
            torch.cuda.empty_cache()
            continue
        del waiting[: len(batch)]
        on_progress(len(batch))
    joined = dict(group.gather(answers))
    return [joined[i] for i in range(len(requests))]


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Indices for each rank, so that the ranks' costs are as even as a greedy choice (largest first) makes them."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = loads.index(min(loads))
        parts[least].append(index)
        loads[least] += costs[index]
    return parts


def next_batch(waiting: Sequence[Request], batch_tokens: int) -> list[Request]:
    """The first requests, of one kind and sorted longest first, that fit the budget; at least one."""
    rows = max(batch_tokens // waiting[0].slots, 1)
    kind = _kind(waiting[0])
    return [request for request in waiting[:rows] if _kind(request) == kind]


def _kind(request: Request) -> tuple[int, ...]:
    """Requests of one kind can share a batch."""
    return (request.max_new_tokens, *request.stop_ids) if isinstance(request, Generate) else ()


def _ask(model: Model, batch: Sequence[Request]) -> Sequence[Answer]:
    scores = [request for request in batch if isinstance(request, Score)]
    return model.score(scores) if scores else model.generate([r for r in batch if isinstance(r, Generate)])


def _out_of_memory(error: BaseException) -> bool:
    """On a GPU there is a class for it; on a CPU the allocator only says so in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
