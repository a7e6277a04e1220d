"""Against the plain way, for families of all kinds: no batch, prefix or padding changes an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig

from tests.support import eval_checkpoints, eval_families
from tests.support.eval_families import SHARING, VOCABULARY, WHOLE, budget
from zerotune.common.errors import UserError
from zerotune.inference import causal_lm, generation, kv_cache, plain_generation
from zerotune.inference.batch_size import Budget
from zerotune.inference.model import LanguageModel
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored
from zerotune.inference.sampling import GenerationState, sample

SCORES, GENERATES = eval_families.scores(), eval_families.generates()
BUDGETS = (1, 7, 16, 100, 100_000)


@pytest.fixture(scope="module")
def words() -> Any:
    return eval_checkpoints.tokenizer()


@pytest.fixture(scope="module", params=[*SHARING, *WHOLE])
def family(request: pytest.FixtureRequest, words: Any) -> tuple[str, LanguageModel]:
    return request.param, LanguageModel(eval_families.network(request.param), words)


@pytest.fixture(scope="module")
def llama(words: Any) -> LanguageModel:
    return LanguageModel(eval_families.network("llama"), words)


def answers(model: LanguageModel, requests: Sequence[Request], size: int = 100_000) -> list[Any]:
    found: list[tuple[int, Answer]] = list(model.answers(requests, budget(size)))
    assert sorted(k for k, _ in found) == list(range(len(requests))), "each request once"
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def test_which_families_share_prefixes(family: tuple[str, LanguageModel]) -> None:
    name, model = family
    assert model.network.shares_prefixes == (name in SHARING)


def test_scores_equal_the_plain_way_within_any_budget(family: tuple[str, LanguageModel]) -> None:
    _, model = family
    plain = [eval_families.plain_score(model.network.model, request) for request in SCORES]
    for size in BUDGETS:
        scored = answers(model, SCORES, size)
        assert [one.log_prob for one in scored] == pytest.approx([total for total, _ in plain], rel=1e-6, abs=1e-5)
        assert [one.greedy for one in scored] == [greedy for _, greedy in plain]
        assert [(one.tokens, one.bytes) for one in scored] == [(len(r.continuation_ids), r.bytes) for r in SCORES]


@pytest.mark.slow
class TestBatchSizes:
    """F20: batches of really 1, 7 and 16 requests, counted where rows enter the model, of two lengths each."""

    SIZES = (1, 7, 16)
    COUNT = 48
    LONGEST = 36  # token positions of a request; those of the others are one fewer, which changes no batch's size

    @pytest.fixture
    def passes(self, family: tuple[str, LanguageModel]) -> Iterator[list[tuple[int, int]]]:
        """(rows, tokens) of each pass through the model that begins with prompts: a step of generation is a token."""
        seen: list[tuple[int, int]] = []

        def note(module: Any, given: Any, named: Any) -> None:
            seen.append(tuple(named["input_ids"].shape if "input_ids" in named else given[0].shape))

        hook = family[1].network.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
        yield seen
        hook.remove()

    def rows(self) -> list[tuple[int, ...]]:
        """No two begin alike, so that each is a row of its own."""
        draw = torch.Generator().manual_seed(2)
        return [(3 + k, *eval_families.tokens(self.LONGEST - 1 - k % 2, draw)) for k in range(self.COUNT)]

    def answers(self, model: LanguageModel, requests: Sequence[Request], size: int, passes: Any) -> list[Any]:
        """Those of batches of `size` requests."""
        passes.clear()
        cached = size * kv_cache.buffer_length(self.LONGEST)
        found = dict(model.answers(requests, Budget(size * self.LONGEST, cached, size * self.LONGEST)))
        begun = [rows for rows, tokens in passes if tokens > 1]
        assert (sum(begun), max(begun)) == (self.COUNT, size)
        # One more where a model with a state takes only prompts of one length together.
        assert len(begun) - -(-self.COUNT // size) in (0, 1)
        return [found[k] for k in range(self.COUNT)]

    def test_scores(self, family: tuple[str, LanguageModel], passes: list[tuple[int, int]]) -> None:
        requests = [Score(row[:-3], row[-3:]) for row in self.rows()]
        one, seven, sixteen = (self.answers(family[1], requests, size, passes) for size in self.SIZES)
        for others in (seven, sixteen):
            assert [a.log_prob for a in others] == pytest.approx([a.log_prob for a in one], rel=1e-6, abs=1e-5)
            assert [a.greedy for a in others] == [a.greedy for a in one]

    def test_continuations(self, family: tuple[str, LanguageModel], passes: list[tuple[int, int]]) -> None:
        requests = [Generate(row[:-5], 5, ()) for row in self.rows()]
        one, seven, sixteen = (self.answers(family[1], requests, size, passes) for size in self.SIZES)
        assert one == seven == sixteen
        assert len({answer.text for answer in one}) > 10, "what is compared differs from row to row"


def test_tokens_that_go_through_the_model_are_counted_and_padding_is_not(family: tuple[str, LanguageModel]) -> None:
    _, model = family
    before = model.tokens
    answers(model, [Score((5, 6), (7, 8, 9)), Score((11, 12, 13, 14, 15), (16,))], 512)
    assert model.tokens - before == 4 + 5  # nothing is asked after a last token
    before = model.tokens
    found = answers(model, [Generate((5, 6, 7), 6, ()), Generate((9,), 2, ()), Generate((8, 9), 1, ())], 512)
    assert model.tokens - before == 6 + sum(one.tokens - 1 for one in found)
    (whole,) = answers(model, [Generate((5, 6, 7), 6, ())])
    last = int(eval_families.plain_continuation(model.network.model, Generate((5, 6, 7), 6, ()))[-1])
    before = model.tokens
    (stopped,) = answers(model, [Generate((5, 6, 7), 6, (last,))])
    assert model.tokens - before == 3 + stopped.tokens  # the stop was asked for after the last token
    assert stopped.tokens < whole.tokens


def test_what_prompts_share_is_counted_once(llama: LanguageModel) -> None:
    before, beginning = llama.tokens, tuple(range(5, 35))
    answers(llama, [Score((*beginning, k), (3, 4)) for k in range(40, 50)], 512)
    assert llama.tokens - before == 30 + 10 * 2


@pytest.mark.parametrize("shared", [0, 30], ids=["rows that share nothing", "rows that begin alike"])
def test_cost_grows_linearly_with_rows(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, shared: int) -> None:
    """Counted in token positions that go through the model; time would tell of the machine."""
    run, positions = causal_lm.Network._states, 0

    def counted(self: causal_lm.Network, ids_bt: torch.Tensor, **keywords: Any) -> torch.Tensor:
        nonlocal positions
        positions += ids_bt.numel()
        return run(self, ids_bt, **keywords)

    monkeypatch.setattr(causal_lm.Network, "_states", counted)
    draw = torch.Generator().manual_seed(0)
    beginning = tuple(range(5, 5 + shared))
    rows = torch.randint(5, VOCABULARY, (160, 20), generator=draw).tolist()
    costs = {}
    for count in (40, 80, 160):
        positions = 0
        answers(llama, [Score(beginning + tuple(row[:18]), tuple(row[18:]), 2) for row in rows[:count]], 512)
        costs[count] = positions
    assert costs[80] <= 2.1 * costs[40]
    assert costs[160] <= 2.1 * costs[80]
    assert costs[160] <= 160 * 20 * 1.3 + shared  # a beginning is computed once, not for each row


def shown(model: LanguageModel, ids: Sequence[int], answer: Any) -> str:
    """An answer that was cut at a token ends in its last whole letter."""
    text = str(model.tokenizer.decode(ids))
    return text if answer.finished else text.rstrip("\ufffd")


@pytest.mark.slow
def test_continuations_equal_greedy_search_by_hand_within_any_budget(family: tuple[str, LanguageModel]) -> None:
    _, model = family
    plain = [eval_families.plain_continuation(model.network.model, request) for request in GENERATES]
    for size in BUDGETS:
        generated = answers(model, GENERATES, size)
        assert [one.text for one in generated] == [
            shown(model, ids, one) for ids, one in zip(plain, generated, strict=True)
        ]
        assert [one.tokens for one in generated] == [len(ids) for ids in plain]


def test_continuations_of_rows_that_enter_later_and_buffers_that_fill_up(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three places for many rows, and room for so few tokens that rows are moved back again and again."""
    monkeypatch.setattr(kv_cache, "SPARE_SHARE", 1000)
    requests = [*GENERATES, *(Generate((k, 5, 6), 3 + k, (0, 2)) for k in range(7, 25))]
    plain = [eval_families.plain_continuation(llama.network.model, request) for request in requests]
    longest = max(request.length for request in requests)
    found = answers(llama, requests, 3 * kv_cache.buffer_length(longest))
    assert [one.tokens for one in found] == [len(ids) for ids in plain]
    assert [one.text for one in found] == [shown(llama, ids, one) for ids, one in zip(plain, found, strict=True)]


@pytest.fixture
def computed(llama: LanguageModel) -> Iterator[list[int]]:
    """Token positions that go through the model, one number for each forward pass."""
    seen: list[int] = []
    hook = llama.network.model.base_model.register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append(keywords["input_ids"].numel()), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_options_of_one_token_are_one_row(llama: LanguageModel, computed: list[int]) -> None:
    asked = tuple(range(3, 60))
    answers(llama, [Score(asked, (option,)) for option in (3, 4, 5, 6)])
    assert computed == [len(asked)]


def test_a_shared_prefix_is_run_once(llama: LanguageModel, computed: list[int]) -> None:
    few_shot = tuple(range(3, 103))
    requests = [Score((*few_shot, *([k] * 10)), (3, 4, 5)) for k in range(10, 30)]
    answers(llama, requests, 64)
    assert sum(computed) == 100 + 20 * (10 + 2)


def test_prompts_that_begin_alike_share_their_beginning(llama: LanguageModel, computed: list[int]) -> None:
    few_shot = tuple(range(3, 103))
    answers(llama, [Generate((*few_shot, *([k] * 10)), 1, ()) for k in range(10, 30)])
    assert sum(computed) == 100 + 20 * 10


def test_finished_rows_are_no_longer_computed(llama: LanguageModel, computed: list[int]) -> None:
    answers(llama, [Generate((4, 3, 5, 6, k), limit, ()) for k, limit in [(7, 1), (8, 2), (9, 6)]])
    assert computed[1:] == [2, 1, 1, 1, 1]


def test_all_places_are_filled_and_refilled_by_the_quarter(llama: LanguageModel, computed: list[int]) -> None:
    requests = [Generate((k, 4, 3, 5, 6, 7), 3 + (k > 11) * 4, ()) for k in range(10, 24)]
    answers(llama, requests, 8 * kv_cache.buffer_length(13))
    steps = [size for size in computed if size <= 8]
    assert steps[:2] == [8, 8]
    assert max(steps) == 8
    assert len(steps) < 2 * 6 + 3, "two rounds of at most six steps each, not row by row"


def test_only_scored_positions_reach_the_head_in_blocks(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(causal_lm.LOGITS_AT_ONCE, "cpu", 0)
    monkeypatch.setattr(causal_lm, "LEAST_BLOCK", 5)
    seen: list[int] = []
    head = llama.network.model.lm_head
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    strangers = [Score((k, 4), (5, 6, k)) for k in range(10, 20)]
    scored = answers(llama, strangers)
    hook.remove()
    assert max(seen) == 5
    assert sum(seen) == sum(len(request.continuation_ids) for request in strangers)
    plain = [eval_families.plain_score(llama.network.model, request)[0] for request in strangers]
    assert [one.log_prob for one in scored] == pytest.approx(plain, abs=1e-5)


def test_logits_that_are_bent_in_an_unknown_way_are_seen(words: Any) -> None:
    """A shortcut past what a model does after its head would be wrong without a word."""
    torch.manual_seed(0)
    sizes = {**eval_families.SIZES, "initializer_range": 0.5}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0)).eval()
    true = type(model).forward
    model.forward = lambda **inputs: _shifted(true(model, **inputs))
    found = LanguageModel(model, words)
    plain = [eval_families.plain_score(model, request)[0] for request in SCORES]
    assert [one.log_prob for one in answers(found, SCORES)] == pytest.approx(plain, abs=1e-4)


def _shifted(output: Any) -> Any:
    output.logits = output.logits * torch.linspace(0.5, 1.5, VOCABULARY)
    return output


def test_probabilities_that_are_not_numbers_are_refused(words: Any) -> None:
    model = eval_checkpoints.model(VOCABULARY)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        answers(LanguageModel(model, words), SCORES[:1])
    for engine in (generation, plain_generation):
        with pytest.raises(UserError, match="not finite"):
            list(engine.generate(LanguageModel(model, words).network, words, [Generate((5, 6), 4, (0,))], budget(400)))


STOPPING = [Generate((5, 6, k), 12, (0, 2), stop_texts=stops) for k in range(7, 27) for stops in ((), ("e", "犬"))]


@pytest.mark.parametrize("engine", [generation, plain_generation])
def test_a_stop_text_ends_the_answer_before_it(llama: LanguageModel, engine: Any) -> None:
    found: dict[int, Generated] = {}
    for generated in engine.generate(llama.network, llama.tokenizer, STOPPING, budget(400)):
        found |= {answer.index: answer.answer() for answer in generated}
    cut = 0
    for k in range(0, len(STOPPING), 2):
        whole, stopped = found[k].text, found[k + 1]
        assert stopped.text == whole.partition("e")[0]
        assert stopped.finished == ("e" in whole or found[k].finished)
        assert stopped.tokens <= found[k].tokens
        cut += "e" in whole
    assert cut > 2, "the case must occur"


def test_a_models_own_settings_change_no_answer(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a policy, which keeps them for its folder. Under ZeRO-3 its ranks do not wait for each other either."""
    model = eval_families.network("gpt-neo, windows over slots")
    plain = answers(LanguageModel(model, words), GENERATES)
    own = GenerationConfig(repetition_penalty=5.0, suppress_tokens=list(range(3, 40)), min_new_tokens=5, eos_token_id=7)
    model.generation_config = own
    asked: list[dict[str, Any]] = []
    generate = type(model).generate

    def watched(self: Any, **options: Any) -> Any:
        asked.append(options)
        return generate(self, **options)

    monkeypatch.setattr(type(model), "generate", watched)
    assert answers(LanguageModel(model, words), GENERATES) == plain
    assert model.generation_config is own
    assert asked
    assert all(options["synced_gpus"] is False for options in asked)


DRAWN = [
    Generate((5, 6, k % 3 + 7), 8, (0, 2), temperature=temperature, seed=k)
    for k in range(12)
    for temperature in (0.5, 2.0)
]


def test_drawn_tokens_depend_on_seed_prompt_and_place_alone(llama: LanguageModel) -> None:
    alone = [answers(llama, [request])[0] for request in DRAWN]
    assert answers(llama, DRAWN) == alone
    assert answers(llama, [*reversed(DRAWN), *GENERATES], 120)[: len(DRAWN)] == alone[::-1]
    found: dict[int, Generated] = {}
    for generated in plain_generation.generate(llama.network, llama.tokenizer, DRAWN, budget(200)):
        found |= {answer.index: answer.answer() for answer in generated}
    assert [found[k] for k in range(len(DRAWN))] == alone
    assert len({one.text for one in alone}) > len(DRAWN) // 2, "seeds differ"


def test_a_temperature_near_0_is_nearly_greedy(words: Any) -> None:
    logits = torch.tensor([[1.0, 9.0, 8.0]])
    for temperature in (1e-300, 5e-324):
        assert sample([GenerationState(0, Generate((1, 2), 1, (), temperature=temperature), words)], logits) == [1]


def test_tokens_are_drawn_as_often_as_the_temperature_says(words: Any) -> None:
    logits_v = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = [GenerationState(k, Generate((1, 2), 1, (), temperature=2.0, seed=k), words) for k in range(4000)]
    counts = torch.bincount(torch.tensor(sample(rows, logits_v.expand(len(rows), -1))), minlength=4)
    assert (counts / len(rows)).tolist() == pytest.approx((logits_v / 2.0).softmax(-1).tolist(), abs=0.03)


def test_memory_that_runs_out_halves_the_budget(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring and generation alike: whatever of a batch is too much is tried again in smaller ones."""
    real = type(llama.network)._states

    def tight(self: Any, ids_bt: Any, **keywords: Any) -> Any:
        if ids_bt.shape[0] > 3 or ids_bt.shape[1] > 80:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")
        return real(self, ids_bt, **keywords)

    requests: list[Request] = [*SCORES, *GENERATES]
    expected = answers(llama, requests)
    monkeypatch.setattr(type(llama.network), "_states", tight)
    found = answers(llama, requests)
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, Scored):
            assert other.log_prob == pytest.approx(one.log_prob, abs=1e-5)
        else:
            assert other == one
