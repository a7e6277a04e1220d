"""Prompts of checkpoints that read numbers as values: encoded as in training, and answered as the plain way does."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support import eval_checkpoints
from tests.support.eval_families import budget
from tests.unit.train.test_number_tokens import FORMS, corpus, using
from zerotune.common.errors import UserError
from zerotune.data.fields import Fields
from zerotune.data.formats import FORMATS
from zerotune.data.labelled import label_prompt
from zerotune.data.number_tokens import NumberTokens, is_number, number_id, rounded, spelled, value_of
from zerotune.data.numbers_in_text import NUM, find_numbers
from zerotune.inference import generation, plain_generation
from zerotune.inference.answer_cache import AnswerCache
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.model import LanguageModel
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Generate, Request, Score
from zerotune.models import cauchy, numeric
from zerotune.models.recurrent import LstmConfig, LstmForCausalLM

VALUES = (0.0, 5.0, -1e300, 1e300, 1e-300, 5e-324, -0.5, 123456.789)


def with_numbers(words: Any, family: str = "llama", **settings: Any) -> Any:
    """A random model whose answers depend on the values that it reads."""
    token = numeric.add_token(words)
    torch.manual_seed(0)
    if family == "llama":
        model: Any = LlamaForCausalLM(eval_checkpoints.config(len(words)))
    else:
        model = LstmForCausalLM(LstmConfig(vocab_size=len(words), hidden_size=16, initializer_range=1.0))
    numeric.add(model, numeric.Settings(token, **settings))
    for parameter in model.numeric.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.numeric.location.weight.data *= 4  # divided by the root of the width, and large enough to write numbers
    return model.eval()


def prompter(words: Any, template: str | None = None, raw: bool = False, reads: bool = True) -> Prompter:
    template = words.chat_template if template is None else template
    return Prompter(words, template, raw, None, 8, 0, (), "tiny", reads_numbers=reads)


def in_pieces(ids: Sequence[int], token: int) -> tuple[list[int], list[float]]:
    tokens, values = numeric.separated(torch.tensor([ids]), token)
    return tokens[0].tolist(), values[0].tolist()


def test_ids_of_numbers_hold_their_values() -> None:
    ids = [7, *map(number_id, VALUES), 0, 2**31]
    assert all(map(is_number, ids[1:-2]))
    assert not any(map(is_number, (0, 7, 2**31)))
    assert len(set(ids)) == len(ids)
    tokens, values = in_pieces(np.asarray(ids, dtype=np.int64).tolist(), 9)
    assert tokens == [7, *[9] * len(VALUES), 0, 2**31]
    assert values == [0.0, *VALUES, 0.0, 0.0]


@pytest.mark.parametrize("template", ["chatml", "plain", "raw"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "labelled"])
def test_rows_are_encoded_as_in_training(form: str, template: str, tmp_path: Path) -> None:
    row, values = FORMS[form]
    made = using()
    trained = corpus(tmp_path, [row], form, made, chat_template=template, max_length_tokens=256)
    (document,) = trained.train.documents(0)
    ids_t, labels_t = trained.train.tokens(0)
    of_row = prompter(made, raw=template == "raw")
    example: Any = FORMATS[form].read(Fields(row, {}, False))
    if isinstance(example, str):
        ids: tuple[int, ...] = of_row.document(example).ids
    else:
        turns = of_row.assistant_turns(example.messages, example.tools)
        ids = turns[-1].ids
        learned = [ids_t[position] for position in range(len(ids_t)) if labels_t[position] != -100]
        scored = [
            token for turn in turns for token in in_pieces(turn.ids[turn.first :], of_row.tokenizer.vocab[NUM])[0]
        ]
        assert scored[: len(learned)] == learned or template == "raw"
    tokens, found = in_pieces(ids, made.convert_tokens_to_ids(NUM))
    assert document.values_t is not None
    end = len(tokens)
    assert tokens == ids_t.tolist()[:end]
    assert found == document.values_t.tolist()[:end]
    assert [value for token, value in zip(tokens, found, strict=True) if token == made.vocab[NUM]] == values


def test_labels_are_encoded_as_in_training(tmp_path: Path) -> None:
    row, values = FORMS["labelled"]
    made = using()
    trained = corpus(tmp_path, [row], "labelled", made)
    (document,) = trained.train.documents(0)
    prefix, (label, other) = prompter(made).choices(label_prompt((row["sentence"],)), [row["label"], "7"])
    tokens, found = in_pieces((*prefix, *label), made.vocab[NUM])
    assert document.values_t is not None
    assert tokens == document.ids_t.tolist()[:-1]  # without the end token
    assert found == document.values_t.tolist()[:-1]
    assert [value for value in found if value] == values
    assert in_pieces(other, made.vocab[NUM])[1][-1] == 7.0


def test_no_number_crosses_from_a_prompt_to_its_label() -> None:
    made = using()
    prefix, (label,) = prompter(made).choices("1", ["2"])
    assert in_pieces((*prefix, *label), made.vocab[NUM])[1] == [1.0, 2.0]


def test_bytes_are_those_of_the_written_text() -> None:
    made = using(trims=False)
    for text in ("１２３ 元 and 5", "a 1,234.5 b", "no number", "5"):
        plain, read = prompter(made, reads=False).document(text), prompter(made).document(text)
        assert read.bytes == len(text.encode()) - len(("１２３" if text[0] == "１" else text[:1]).encode())
        assert plain.bytes <= len(text.encode())


def test_special_tokens_with_digits_stay_whole() -> None:
    made = using(marks=("<|im_start|>", "<|im_end|>", "<|reserved_7|>"))
    ids = prompter(made).document("<|reserved_7|> has 7").ids
    assert in_pieces(ids, made.vocab[NUM])[1][-1] == 7.0
    assert sum(map(is_number, ids)) == 1


@pytest.mark.parametrize(("text", "reason"), [("1e+301", r"number too large: 1e\+301"), ("<NUM>", "<NUM> in the text")])
def test_numbers_that_do_not_fit_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"tiny: {reason}"):
        prompter(using(), raw=True).chat_prompt([{"role": "user", "content": text}])


def test_images_are_refused() -> None:
    with pytest.raises(UserError, match="tiny: reads numbers as values, which prompts with images do not support"):
        prompter(using()).image_prompt(["a.png"], "How many?")


def prompts() -> list[tuple[int, ...]]:
    """Some differ only in a value, some share what stands before it."""
    number = [number_id(value) for value in (3.0, 4.0, -1e300, 0.0)]
    shared = [5, 17, 9, 33, 21, 8, 4, 11]
    return [
        *((*shared, value, 6, 7) for value in number),
        *((*shared, number[0], 6, value) for value in number),
        (number[1], 5),
        (12, 13, number[2], 14),
    ]  # fmt: skip


def answers(model: LanguageModel, requests: Sequence[Request], size: int = 100_000) -> list[Any]:
    found: list[tuple[int, Answer]] = list(model.answers(requests, budget(size)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """[t, v] the plain way: one row, whole logits, values beside the tokens."""
    tokens, values = numeric.separated(torch.tensor([ids]), numeric.settings_of(model.config).token_id)  # type: ignore[union-attr]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens, values=values, use_cache=False).logits[0].double()
    return found


@pytest.mark.parametrize("family", ["llama", "lstm"])
@pytest.mark.parametrize("token_loss", ["softmax", "one_vs_rest"])
def test_scores_equal_the_plain_way_within_any_budget(family: str, token_loss: Any) -> None:
    words = eval_checkpoints.tokenizer()
    network = with_numbers(words, family, token_loss=token_loss)
    model = LanguageModel(network, words)
    assert model.network.shares_prefixes == (family == "llama")
    requests = [Score(ids, (number_id(value), 30, 31)) for ids in prompts() for value in (7.0, 8.0)]
    token = numeric.settings_of(network.config).token_id  # type: ignore[union-attr]
    expected, numbers = [], []
    for request in requests:
        log_p_tv = logits(network, (*request.prefix_ids, *request.continuation_ids[:-1]))[-3:].log_softmax(-1)
        of_targets = log_p_tv[torch.arange(3), torch.tensor([token, 30, 31])]
        expected.append(float(of_targets.sum()))
        numbers.append(float(of_targets[0]))
    assert len({round(value, 6) for value in expected}) == len(expected), "each value changes what follows"
    for size in (1, 16, 100_000):
        found = answers(model, requests, size)
        assert [one.log_prob for one in found] == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert [one.unknown_log_prob for one in found] == pytest.approx(numbers, rel=1e-5, abs=1e-4)
        assert {one.unknown for one in found} == {1}


@pytest.mark.parametrize("family", ["llama", "lstm"])
def test_generated_tokens_equal_the_plain_way(family: str) -> None:
    words = eval_checkpoints.tokenizer()
    network = with_numbers(words, family)
    token = numeric.settings_of(network.config).token_id  # type: ignore[union-attr]
    network.get_output_embeddings().weight.data[token] = 0.0  # writes no number
    model = LanguageModel(network, words)
    requests = [Generate(ids, 5, ()) for ids in prompts()]
    expected = []
    for request in requests:
        ids = list(request.prefix_ids)
        for _ in range(5):
            ids.append(int(logits(network, ids)[-1].argmax()))
        expected.append(words.decode(ids[-5:], skip_special_tokens=True).rstrip("\ufffd"))
    assert len(set(expected)) > 3
    for size in (1, 100_000):
        assert [one.text for one in answers(model, requests, size)] == expected


def test_cached_answers_depend_on_values() -> None:
    cache = AnswerCache()
    requests: list[Request] = [Score((number_id(value), 5), (6,)) for value in (3.0, 4.0)]
    cache.add("model", {requests[0]: answers(fresh(), requests)[0]})
    assert list(cache.lookup("model", requests)) == requests[:1]


def fresh() -> LanguageModel:
    words = eval_checkpoints.tokenizer()
    return LanguageModel(with_numbers(words), words)


def test_a_folder_with_numbers_reads_them(tmp_path: Path) -> None:
    words = eval_checkpoints.tokenizer()
    with_numbers(words).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    opened = open_checkpoint(str(tmp_path), "tiny")
    ids = opened.prompter("tokenizer", 8, 0).document("It is 5.").ids
    assert sum(map(is_number, ids)) == 1
    assert NumberTokens(opened.tokenizer.backend_tokenizer).id == words.vocab[NUM]
    model = opened.load("language", "fp32", "none", torch.device("cpu"))
    (found,) = (answer for _, answer in model.answers([Score(ids[:-1], ids[-1:])], budget(100)))
    assert math.isfinite(found.log_prob)  # type: ignore[union-attr]


def continued(model: Any, words: Any, ids: Sequence[int], count: int) -> list[int]:
    """The plain way: the whole row is read for each token; numbers are the medians of training's own predictions."""
    made, token = list(ids), numeric.settings_of(model.config).token_id  # type: ignore[union-attr]
    for _ in range(count):
        following = int(logits(model, made)[-1].argmax())
        if following == token:
            tokens, values = numeric.separated(torch.tensor([[*made, number_id(0.0)]]), token)
            targets = torch.full_like(tokens, -100)
            targets[0, -2] = token
            found = numeric.predictions(model, {"input_ids": tokens, "values": values, "use_cache": False}, targets)
            earlier = [value_of(one) for one in reversed(made) if is_number(one)]
            following = number_id(rounded(found.values.quantiles([0.5])[0].item(), earlier))
        made.append(following)
    return made[len(ids) :]


@pytest.mark.parametrize("family", ["llama", "lstm"])
@pytest.mark.parametrize("settings", [{}, {"copy": False, "value_space": "linear"}, {"token_loss": "one_vs_rest"}])
def test_generated_numbers_equal_the_plain_way(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = eval_checkpoints.tokenizer()
    network = with_numbers(words, family, **settings)
    token = numeric.settings_of(network.config).token_id  # type: ignore[union-attr]
    usual = numeric._scores

    def with_many_numbers(*arguments: Any) -> torch.Tensor:
        scores = usual(*arguments)
        scores[..., token] = torch.where(scores[..., 5] > scores[..., 6], 1e4, -1e4)
        return scores

    monkeypatch.setattr(numeric, "_scores", with_many_numbers)
    plain = [continued(network, words, ids, 6) for ids in prompts()]
    numbers = [value_of(one) for ids in plain for one in ids if is_number(one)]
    assert len(set(numbers)) > 3
    model = LanguageModel(network, words)
    requests = [Generate(ids, 6, ()) for ids in prompts()]
    assert any(is_number(one) and not is_number(ids[k + 1]) for ids in plain for k, one in enumerate(ids[:-1]))
    engine = generation if model.network.shares_prefixes else plain_generation
    for size in (1, 30, 100_000):
        done = (row for rows in engine.generate(model.network, words, requests, budget(size)) for row in rows)
        for ids, row in zip(plain, sorted(done, key=lambda row: row.index), strict=True):
            assert [is_number(one) or one for one in row.ids] == [is_number(one) or one for one in ids]
            found, expected = ([math.asinh(value_of(one)) for one in made if is_number(one)] for made in (row.ids, ids))
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
            assert NUM not in row.answer().text
            assert all(spelled(value_of(one)) in row.answer().text for one in row.ids if is_number(one))


@pytest.mark.parametrize("family", ["llama", "lstm"])
def test_one_draw_of_the_cause_decides_on_token_and_number(family: str) -> None:
    words = eval_checkpoints.tokenizer()
    network = with_numbers(words, family, copy=False)
    token = numeric.settings_of(network.config).token_id  # type: ignore[union-attr]
    network.get_output_embeddings().weight.data[token] = 0.3  # so that `<NUM>` comes often
    model = LanguageModel(network, words)
    requests = [Generate(ids, 4, (), seed=seed, causal=True) for ids in prompts() for seed in range(30)]
    texts = [
        [re.sub(r"-?\d[\d.e+-]*", "5", answer.text) for answer in answers(model, requests, size)]  # rounding differs
        for size in (1, 100_000)
    ]
    assert texts[0] == texts[1]  # whatever the batch
    assert len(set(texts[0])) > 100
    state_d, module = torch.randn(network.config.hidden_size), network.numeric
    share_nd1 = torch.rand(4000, len(state_d) + 1, dtype=torch.float64)
    with torch.inference_mode():
        found = [numeric.drawn(network, state_d, share_d1) for share_d1 in share_nd1]
        values = numeric.next_value(network, state_d, None, [5])
        scale_v = cauchy.scales(module.scale(state_d[None]), network.get_output_embeddings().weight)[0]
        location_v = network.get_output_embeddings()(module.location(state_d))
    for drawn, location, scale in (
        (torch.stack([one.deviation for one in found]) + values.location_m, values.location_m, values.scale_m),
        (torch.stack([one.scores_v[7] for one in found]), location_v[7], scale_v[7]),
    ):
        below = [
            (drawn < location + scale * math.tan(math.pi * (share - 0.5))).double().mean() for share in (0.25, 0.9)
        ]
        assert below == pytest.approx([0.25, 0.9], abs=0.03)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (804.0000001, "804"), (-0.0, "0"), (0.1 + 0.2, "0.3"), (1234567.0, "1234570"), (1e300, "1e+300"),
        (123456789012.0, "123457000000"), (-2.5e-7, "-2.5e-07"), (0.00012345, "0.00012345"), (1e16, "1e+16"),
    ],
)  # fmt: skip
def test_spellings_are_read_as_what_was_written(value: float, text: str) -> None:
    assert spelled(rounded(value)) == text
    assert spelled(rounded(value * (1 + 1e-8), [5.0, value])) == spelled(value)
    (found,) = find_numbers(f"It is {text} m.")
    assert found.value == pytest.approx(value, rel=1e-5)
