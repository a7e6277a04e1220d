"""Which rank computes what, in which batches, and what happens when memory runs out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from eval.distributed import Ranks
from tests.support import eval_families
from zerotune.common.errors import UserError
from zerotune.inference import batch_size as batch_size_file
from zerotune.inference.batch_size import Budget, choose_budget, in_batches
from zerotune.inference.requests import Answer, Generate, Request, Score, Scored
from zerotune.inference.runner import answer, shares

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SCORES = eval_families.scores()


class SmallMemory:
    """Answers like a machine that holds at most `limit` slots of a batch at once; remembers what it was asked."""

    def __init__(self, limit: int, error: Exception) -> None:
        self.limit, self.error = limit, error
        self.sizes: list[int] = []
        self.asked: list[Request] = []

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        self.asked += requests
        for batch in in_batches(list(enumerate(requests)), lambda row: row[1].length, budget, self._batch):
            yield from batch

    def _batch(self, rows: list[tuple[int, Request]]) -> list[tuple[int, Answer]]:
        self.sizes.append(len(rows) * max(request.length for _, request in rows))
        if self.sizes[-1] > self.limit:
            raise self.error
        return [(k, Scored(-float(request.length), 1)) for k, request in rows]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_the_batch_is_halved_when_memory_runs_out(error: Exception) -> None:
    model = SmallMemory(100, error)
    answers = answer(model, eval_families.budget(800), SCORES, ALONE)
    assert [one.log_prob for one in answers if isinstance(one, Scored)] == [-float(r.length) for r in SCORES]
    first_fit = next(k for k, size in enumerate(model.sizes) if size <= 100)
    assert first_fit > 0
    assert all(size <= 100 for size in model.sizes[first_fit:]), "the smaller budget must be kept"


def test_one_request_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match="does not fit into memory"):
        answer(SmallMemory(3, MemoryError()), eval_families.budget(400), SCORES, ALONE)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        answer(SmallMemory(3, RuntimeError("shapes do not match")), eval_families.budget(400), SCORES, ALONE)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 300))
def test_batches_keep_the_budget(sizes: list[int], tokens: int) -> None:
    batches = list(in_batches(sizes, lambda size: size, eval_families.budget(tokens), list))
    assert sorted(itertools.chain(*batches)) == sorted(sizes)
    for batch, after in itertools.zip_longest(batches, batches[1:]):
        assert len(batch) == 1 or len(batch) * max(batch) <= tokens
        assert after is None or (len(batch) + 1) * max(batch) > tokens, "no smaller than it must be"


def test_equal_requests_are_asked_once() -> None:
    model = SmallMemory(10_000, MemoryError())
    told: list[Request] = []
    answers = answer(model, eval_families.budget(64), SCORES * 2, ALONE, lambda request, found: told.append(request))
    assert len(answers) == 2 * len(SCORES)
    assert len(set(SCORES)) < len(SCORES)
    assert len(model.asked) == len(told) == len(set(SCORES))


REQUESTS = st.lists(
    st.builds(
        lambda ids, limit: Generate(ids, limit, ()) if limit else Score(ids, (1, 2)),
        st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple),
        st.integers(0, 9),
    ),
    max_size=40,
    unique=True,
)


@given(REQUESTS, st.integers(1, 5))
def test_shares_are_complete(requests: list[Request], count: int) -> None:
    parts = shares(requests, count)
    assert len(parts) == count
    assert sorted(itertools.chain(*parts)) == list(range(len(requests)))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 5))
def test_shares_cost_the_same_but_for_one_request(sizes: list[int], count: int) -> None:
    requests = [Score((k + 1,) * size, (1,)) for k, size in enumerate(sizes)]  # nothing in common
    loads = [sum(sizes[k] for k in part) for part in shares(requests, count)]
    assert max(loads) <= sum(sizes) / count + max(sizes)
    assert min(loads) >= sum(sizes) / count - max(sizes)


def test_what_begins_alike_stays_together() -> None:
    """Four subjects of long few-shot blocks on two ranks: each block is run by one rank."""
    requests = [Score((subject,) * 500 + (question,) * 20, (1, 2)) for question in range(8) for subject in range(4)]
    subjects = [{requests[k].prefix_ids[0] for k in part} for part in shares(requests, 2)]
    assert subjects[0] & subjects[1] == set()


def test_two_ranks_answer_as_one() -> None:
    """Each half by itself, joined by hand; real processes do the same in tests/process."""
    expected = answer(SmallMemory(10_000, MemoryError()), eval_families.budget(60), SCORES, ALONE)
    joined: list[tuple[int, Answer]] = []

    class Half(Ranks):
        def gather(self, mine: list[Any]) -> list[Any]:
            joined.extend(mine)
            return joined if self.index == 1 else [(k, Scored(0.0, 0)) for k in range(len(SCORES))]

    halves = [SmallMemory(10_000, MemoryError()) for _ in range(2)]
    answer(halves[0], eval_families.budget(60), SCORES, Half(0, 2, CPU))
    assert answer(halves[1], eval_families.budget(60), SCORES, Half(1, 2, CPU)) == expected
    assert sorted(k for k, _ in joined) == list(range(len(set(SCORES)))), "every request is answered once"
    assert all(half.asked for half in halves)


CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)


def test_the_budget_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    activation, cache = batch_size_file.bytes_of_token(CONFIG, torch.float32)
    assert cache == 2 * 2 * 16 * 4 * 4
    monkeypatch.setattr(batch_size_file, "free_bytes", lambda device: 4000 * (activation + cache))
    found = choose_budget(0, CONFIG, torch.float32, CPU)
    assert found.tokens == 1000
    assert found.cached == 1000 * (activation + cache) // cache
    monkeypatch.setattr(batch_size_file, "free_bytes", lambda device: 1)
    assert choose_budget(0, CONFIG, torch.float32, CPU) == Budget(1, 1, 1)


def test_the_user_can_say_how_much() -> None:
    assert choose_budget(100, CONFIG, torch.float32, CPU) == Budget(100, 100, 100)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert batch_size_file.free_bytes(CPU) == 250
