"""`eval.model` against the plain way, and `eval.runner`: no batch, padding or share changes an answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from eval import model as model_file
from eval.errors import UserError
from eval.model import LanguageModel
from eval.protocols import Answer, Generate, Generated, Score, Scored
from eval.ranks import Ranks
from eval.runner import answer, next_batch, shares
from tests import eval_checkpoints

ALONE = Ranks(0, 1, torch.device("cpu"))
VOCABULARY = 300


@pytest.fixture(scope="module")
def network() -> Any:
    return eval_checkpoints.model(VOCABULARY)


@pytest.fixture(scope="module")
def words() -> Any:
    return eval_checkpoints.tokenizer()


@pytest.fixture(scope="module")
def language_model(network: Any, words: Any) -> LanguageModel:
    network.generation_config = GenerationConfig()
    return LanguageModel(network, words)


def ragged(count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 20, (count, 2), generator=draw).tolist()
    return [tuple(tuple(torch.randint(3, VOCABULARY, (n,), generator=draw).tolist()) for n in two) for two in sizes]


SCORES = [Score(prefix, continuation, bytes=len(prefix)) for prefix, continuation in ragged(13)]
GENERATES = [Generate(prefix, 12, (0, 2)) for prefix, _ in ragged(13)]


def plain_sums(network: Any, requests: Sequence[Score]) -> list[float]:
    """One row at a time, whole logits."""
    return [
        float(eval_checkpoints.log_probs(network, [*r.prefix_ids, *r.continuation_ids])[len(r.prefix_ids) - 1 :].sum())
        for r in requests
    ]


def test_scores_equal_the_plain_way(language_model: LanguageModel, network: Any) -> None:
    scored = language_model.score(SCORES)
    assert [one.log_prob for one in scored] == pytest.approx(plain_sums(network, SCORES), abs=1e-5)
    assert [(one.tokens, one.bytes) for one in scored] == [(len(r.continuation_ids), r.bytes) for r in SCORES]


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 100_000])
def test_batches_change_no_answer(language_model: LanguageModel, batch_tokens: int) -> None:
    requests = [request for pair in zip(SCORES, GENERATES, strict=True) for request in pair]
    alone = [
        language_model.score([r])[0] if isinstance(r, Score) else language_model.generate([r])[0] for r in requests
    ]
    together = answer(language_model, requests, batch_tokens, ALONE)
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, Scored):
            assert isinstance(other, Scored)
            assert other.log_prob == pytest.approx(one.log_prob, abs=1e-5)
        else:
            assert other == one


def test_left_padding_changes_nothing(language_model: LanguageModel, network: Any) -> None:
    """A short prompt beside a long one continues as greedy search by hand, without padding or cache, continues it."""
    short, long = Generate((5, 6, 7), 10, (0, 2)), Generate(tuple(range(10, 60)), 10, (0, 2))
    ids = list(short.prefix_ids)
    for _ in range(short.max_new_tokens):
        with torch.no_grad():
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in short.stop_ids:
            break
    by_hand = language_model.tokenizer.decode([i for i in ids[3:] if i not in short.stop_ids])
    assert language_model.generate([short, long])[0].text == by_hand


def test_only_scored_positions_reach_the_head_in_blocks(
    language_model: LanguageModel, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    seen: list[int] = []
    hook = network.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    scored = language_model.score(SCORES)
    hook.remove()
    assert max(seen) == 5
    assert sum(seen) == sum(len(request.continuation_ids) for request in SCORES)
    assert [one.log_prob for one in scored] == pytest.approx(plain_sums(network, SCORES), abs=1e-5)


def test_a_soft_cap_on_the_logits_is_seen(words: Any) -> None:
    """Gemma 2 bends its logits after the head; a shortcut past that would be wrong without a word."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    network = Gemma2ForCausalLM(config).eval()
    scored = LanguageModel(network, words).score(SCORES)
    assert [one.log_prob for one in scored] == pytest.approx(plain_sums(network, SCORES), abs=1e-4)


def test_absolute_positions_are_not_shifted_by_padding(words: Any) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    network = GPT2LMHeadModel(config).eval()
    network.generation_config = GenerationConfig()
    gpt = LanguageModel(network, words)
    assert [one.log_prob for one in gpt.score(SCORES)] == pytest.approx(plain_sums(network, SCORES), abs=1e-5)
    assert gpt.generate(GENERATES) == [gpt.generate([request])[0] for request in GENERATES]


def test_probabilities_that_are_not_numbers_are_refused(words: Any) -> None:
    network = eval_checkpoints.model(VOCABULARY)
    torch.nn.init.constant_(network.lm_head.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        LanguageModel(network, words).score(SCORES[:1])


class SmallMemory:
    """Answers like a machine that holds at most `limit` slots of a batch at once."""

    def __init__(self, limit: int, error: Exception) -> None:
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def score(self, requests: Sequence[Score]) -> list[Scored]:
        self.sizes.append(len(requests) * max(request.slots for request in requests))
        if self.sizes[-1] > self.limit:
            raise self.error
        return [Scored(-float(request.slots), len(request.continuation_ids)) for request in requests]

    def generate(self, requests: Sequence[Generate]) -> list[Generated]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_the_batch_is_halved_when_memory_runs_out(error: Exception) -> None:
    model = SmallMemory(100, error)
    answers = answer(model, SCORES, 400, ALONE)
    assert [one.log_prob for one in answers if isinstance(one, Scored)] == [-float(r.slots) for r in SCORES]
    first_fit = next(k for k, size in enumerate(model.sizes) if size <= 100)
    assert all(size <= 100 for size in model.sizes[first_fit:]), "the smaller budget must be kept"


def test_one_request_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match="does not fit into memory"):
        answer(SmallMemory(3, MemoryError()), SCORES, 400, ALONE)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        answer(SmallMemory(3, RuntimeError("shapes do not match")), SCORES, 400, ALONE)


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 5))
def test_shares_are_complete_and_even(costs: list[int], count: int) -> None:
    parts = shares(costs, count)
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 300))
def test_batches_keep_the_budget(sizes: list[int], batch_tokens: int) -> None:
    waiting = [Score((1,) * size, (1,)) for size in sorted(sizes, reverse=True)]
    batch = next_batch(waiting, batch_tokens)
    assert len(batch) == 1 or len(batch) * batch[0].slots <= batch_tokens
    assert batch == waiting[: len(batch)]
    assert len(batch) == len(waiting) or (len(batch) + 1) * waiting[0].slots > batch_tokens


def test_requests_of_two_kinds_share_no_batch() -> None:
    short, long = Generate((1,), 4, (0,)), Generate((1,), 8, (0,))
    assert next_batch([long, short], 1000) == [long]


def test_two_ranks_answer_as_one(language_model: LanguageModel) -> None:
    """Each half by itself, joined by hand; real processes do the same in tests/process."""
    expected = answer(language_model, SCORES, 60, ALONE)
    joined: list[tuple[int, Answer]] = []

    class Half(Ranks):
        def gather(self, mine: list[Any]) -> list[Any]:
            joined.extend(mine)
            return joined if self.index == 1 else [(k, Scored(0.0, 0)) for k in range(len(SCORES))]

    answer(language_model, SCORES, 60, Half(0, 2, torch.device("cpu")))
    both = answer(language_model, SCORES, 60, Half(1, 2, torch.device("cpu")))
    assert len(joined) == len(SCORES), "every request is answered once"
    assert [one.log_prob for one in both] == pytest.approx([one.log_prob for one in expected], abs=1e-5)
