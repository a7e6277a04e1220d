"""Prompts from rows with an answer, without one, and from pairs of answers: the same tokens wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data_tools import corpus_of, learned, recipe, tokenizer
from train.config import SourceConfig
from train.data.prepare import LabelSpec
from train.data.setup import set_up
from train.data.sources import find
from train.data.token_cache import entry_key
from train.objectives.ppo.conversations import read_conversations
from train.objectives.ppo.prompts import Prompt, row_prompts
from train.objectives.ppo.sft_batches import with_answers
from train.registry import OBJECTIVES
from zerotune.common.errors import UserError

ASKED = LabelSpec(OBJECTIVES["ppo"].formats, asks=True)
USER, REPLY = {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am fine."}
AGAIN = {"role": "user", "content": "And what about you?"}
BE_BRIEF = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "sum", "arguments": {}}}]}
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
)
CASES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "qa": ("qa", {"question": "How are you?", "answer": "Fine."}, [{"question": "How are you?"}]),
    "pr": ("pr", {"prompt": "Hi", "response": "Hi you"}, [{"prompt": "Hi", "response": empty} for empty in ("", None)]),
    "io": (
        "io",
        {"instruction": "Add", "input": "1 1", "output": "2", "system": "Be brief."},
        [{"instruction": "Add", "input": "1 1", "output": empty, "system": "Be brief."} for empty in (" \n", None)],
    ),
    "chat": ("chat", {"messages": [BE_BRIEF, USER, REPLY]}, [{"messages": [BE_BRIEF, USER]}]),
    "chat of several turns": ("chat", {"messages": [USER, REPLY, AGAIN, REPLY]}, [{"messages": [USER, REPLY, AGAIN]}]),
    "ShareGPT": (
        "chat",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi you"}]},
        [{"conversations": [{"from": "human", "value": "Hi"}]}],
    ),
    "chat that a tool has spoken in": (
        "chat",
        {"messages": [USER, CALL, {"role": "tool", "content": "7"}, REPLY]},
        [{"messages": [USER, CALL, {"role": "tool", "content": "7"}]}],
    ),
}


def prompts(corpus: Any, **options: Any) -> list[Prompt | None]:
    return list(row_prompts(corpus.train, [], 2, 128, **options))


@pytest.mark.parametrize("template", ["plain", "chatml", "raw", "marked"])
@pytest.mark.parametrize("name", CASES)
def test_prompt_tokens_do_not_depend_on_the_answer(tmp_path: Path, name: str, template: str) -> None:
    form, whole, asked = CASES[name]
    (tmp_path / "marked.jinja").write_text(MARKED)
    chosen = str(tmp_path / "marked.jinja") if template == "marked" else template
    using, options = tokenizer(), {"chat_template": chosen, "max_length_tokens": 128}
    corpus = corpus_of(tmp_path, [whole, *asked], form, using, label_spec=ASKED, **options)
    (_, labels), *without = (corpus.train.tokens(row) for row in range(len(corpus.train)))
    assert (labels != -100).any()
    assert not any((labels != -100).any() for _, labels in without)
    expected, *found = prompts(corpus)
    assert expected is not None
    assert len(found) == len(asked)
    assert all(prompt is not None and prompt.ids == expected.ids for prompt in found)
    plain = corpus_of(tmp_path / "learned", [whole], form, using, **options).train.tokens(0)
    assert all((a == b).all() for a, b in zip(corpus.train.tokens(0), plain, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_prompt_messages_are_those_before_the_answer(tmp_path: Path, name: str) -> None:
    form, whole, asked = CASES[name]
    rows = [whole, *asked]
    corpus = corpus_of(tmp_path, rows, form, label_spec=ASKED, max_length_tokens=128)
    source = find(SourceConfig(str(tmp_path / "rows.jsonl"), form), "data.train[0]")  # type: ignore[arg-type]
    found = prompts(corpus, messages=read_conversations([source], None))
    messages = {str(prompt.messages) for prompt in found if prompt}
    assert len(found) == len(rows)
    assert len(messages) == 1
    assert all(prompt.messages[-1]["role"] != "assistant" for prompt in found if prompt)


@pytest.mark.parametrize("name", CASES)
def test_other_objectives_refuse_rows_without_answers(tmp_path: Path, name: str) -> None:
    form, _, asked = CASES[name]
    if "several" in name or "tool" in name:
        corpus = corpus_of(tmp_path, asked, form, max_length_tokens=128)
        assert (corpus.train.tokens(0)[1] != -100).any()  # the earlier turn is learned, what follows it dropped
        return
    with pytest.raises(UserError, match=r"is missing in every row|is null|is empty|no turn of the assistant"):
        corpus_of(tmp_path, asked, form)


def pair(before: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": before, "chosen": chosen, "rejected": rejected, **more}


def test_message_pairs_give_the_same_prompt_as_chats(tmp_path: Path) -> None:
    using = tokenizer()
    worse = {"role": "assistant", "content": "What?"}
    pairs = [
        pair([USER], [REPLY], [worse]),
        pair(None, [USER, REPLY], [USER, worse]),
        {"conversations": [{"from": "human", "value": USER["content"]}], "chosen": REPLY, "rejected": worse},
    ]
    corpus = corpus_of(tmp_path, pairs, "preference", using, label_spec=ASKED)
    chat = corpus_of(tmp_path / "chat", [{"messages": [USER, REPLY]}], "chat", using, label_spec=ASKED)
    (expected,) = prompts(chat)
    assert [prompt.ids for prompt in prompts(corpus) if prompt and expected] == [expected.ids] * len(pairs)
    assert learned(corpus, using) == ["I am fine.</s>"]


@pytest.mark.parametrize("bos", [True, False])
def test_text_pairs_use_their_prompt_without_template(tmp_path: Path, bos: bool) -> None:
    """A reward model read them without a chat template. Equal answers are asked too."""
    using = tokenizer(bos=bos)
    rows = [pair("How are you?", " Fine.", " What?"), pair("How are you?", " Fine.", " Fine.")]
    corpus = corpus_of(tmp_path, rows, "preference", using, label_spec=ASKED, chat_template="chatml")
    for row, prompt in enumerate(prompts(corpus)):
        assert prompt is not None
        assert list(prompt.ids) == using("How are you?")["input_ids"]
        assert learned(corpus, using, row) == [" Fine.</s>"]
        assert prompt.messages == ()


def test_one_token_prompts_are_not_taken_for_corpora(tmp_path: Path) -> None:
    using = tokenizer()
    rows = [pair("a", " Fine. And you?", " What?"), pair("a", " What about you?", " ")]
    for prompt in prompts(corpus_of(tmp_path, rows, "preference", using, label_spec=ASKED)):
        assert prompt is not None
        assert using.decode(prompt.ids) == "a"


def test_pairs_without_a_prompt_are_refused(tmp_path: Path) -> None:
    for row in ({"chosen": "How are you?", "rejected": "What?"}, {"chosen": [REPLY], "rejected": [USER, REPLY]}):
        with pytest.raises(UserError, match=r"rows\.jsonl:1: nothing is asked"):
            corpus_of(tmp_path, [row], "preference", label_spec=ASKED)


BAD = [
    ("qa", {"question": None, "answer": "A"}, "field `question` is null"),
    ("qa", {"question": "Q", "answer": 12}, "field `answer` is not text"),
    ("chat", {"messages": [BE_BRIEF]}, "nothing is asked: no turn of the user"),
    ("chat", {"messages": [{"role": "user", "content": "fox " * 200}]}, r"longer than data\.max_length_tokens: "),
]


@pytest.mark.parametrize(("form", "row", "reason"), BAD)
def test_rows_without_a_prompt_are_bad_rows(tmp_path: Path, form: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: {reason}"):
        corpus_of(tmp_path, [row], form, label_spec=ASKED)


def test_token_cache_separates_rows_read_as_prompts(tmp_path: Path) -> None:
    def key(form: Any, label_spec: LabelSpec) -> str:
        setup = set_up(recipe(tmp_path, SourceConfig("x", form)), tokenizer(), label_spec)
        return entry_key(["content"], setup.train[0], 0)

    for form in ("qa", "pr", "io", "chat"):
        assert key(form, ASKED) != key(form, LabelSpec())
    assert key("preference", ASKED) != key("preference", LabelSpec(OBJECTIVES["reward_model"].formats, "values"))
    assert key("text", ASKED) == key("text", LabelSpec())


def test_overlap_is_found_for_prompts_without_answers(tmp_path: Path) -> None:
    rows = [{"question": "How are you?"}, {"question": "how ARE you?", "answer": "Fine."}, {"question": "Hi"}]
    corpus = corpus_of(tmp_path, rows, "qa", label_spec=ASKED, validation_fraction=0.34)
    assert any("overlap with the validation data" in line for line in corpus.lines)
    assert len({int(x) for x in corpus.train.parts[0].table.column("prompt_n")}) == 2


def test_sft_batches_skip_rows_without_an_answer(tmp_path: Path) -> None:
    rows = [{"question": "Hi", "answer": "Hi you"}, {"question": "How are you?"}, {"question": "And?", "answer": "1"}]
    corpus = corpus_of(tmp_path, rows, "qa", label_spec=ASKED)
    kept = with_answers(corpus.train)
    assert [kept.row_id(k).rpartition(":")[2] for k in range(len(kept))] == ["1", "3"]
    whole = corpus_of(tmp_path / "whole", [rows[0], rows[2]], "qa", label_spec=ASKED).train
    assert with_answers(whole).digest == whole.digest
