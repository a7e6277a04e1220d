"""The tokens that generation stops at: those that the rows themselves end with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.data_tools import CHATML_MARKS, corpus_of, learned, recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from tests.support.template_table import CASES, source
from train.config import SourceConfig
from train.data.label_encoder import LabelSpec
from train.data.prepare import prepare, stream

NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [{"role": "user", "content": "法国的首都？"}, {"role": "assistant", "content": "巴黎。"}]
ENDS = {
    "gptoss": ["<|return|>", "<|call|>"],
    "glm4moe": ["<|user|>", "<|observation|>"],
    "llama3_1": ["<|eot_id|>"],
    "phi3": ["</s>"],
    "qwen3": ["<|im_end|>"],
    "deepseekv3": ["<｜end▁of▁sentence｜>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
}


def of_family(name: str) -> Any:
    """A tiny tokenizer with the family's template, and the special tokens that it writes."""
    found = [mark for mark in MARKS if mark in source(name)]
    using = tokenizer(marks=tuple(found), bos_token="<s>")
    using.chat_template = source(name)
    return using


MARKS = sorted({mark for marks in ENDS.values() for mark in marks if mark != "</s>"} | {
    "<|im_start|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|assistant|>", "<think>", "</think>",
    "<|start_header_id|>", "<|end_header_id|>", "<|turn>", "<|tool_call>", "<tool_call|>",
    "<｜Assistant｜>", "<｜User｜>",
})  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_family_stops_where_its_rows_end(name: str, tmp_path: Path) -> None:
    """In conversations of several turns, with calls of tools where the template takes them."""
    using = of_family(name)
    talks = [CASES["more"], CASES["tools"]] if name != "phi3" else [CASES["more"]]
    rows = [{"messages": talk.messages} | ({"tools": talk.tools} if talk.tools else {}) for talk in talks]
    corpus = corpus_of(tmp_path, rows, "chat", using, chat_template="tokenizer", max_length_tokens=4000)
    assert corpus.stop_ids == tuple(sorted(using.convert_tokens_to_ids(ENDS[name])))
    assert using.chat_template == source(name)
    last = learned(corpus, using)[-1]
    assert "A2" in last
    assert last.endswith(ENDS[name][0])


def test_a_turn_in_the_middle_is_no_end(tmp_path: Path) -> None:
    """gpt-oss closes earlier turns with <|end|>, which within an answer only ends its thoughts."""
    using, talk = of_family("gptoss"), CASES["more"].messages
    rows = [{"messages": [*talk[:3], {**talk[3], "weight": 0}]}, {"messages": talk[:2]}]
    corpus = corpus_of(tmp_path, rows, "chat", using, chat_template="tokenizer", max_length_tokens=4000)
    assert learned(corpus, using)[0].endswith("<|end|>")
    assert corpus.stop_ids == (using.convert_tokens_to_ids("<|return|>"),)


def test_a_template_may_insist_on_a_system_message(tmp_path: Path) -> None:
    using = tokenizer()
    using.chat_template = NEEDS_SYSTEM
    corpus = corpus_of(
        tmp_path, [{"messages": [SYSTEM, *TALK]}], "chat", using, chat_template="tokenizer", max_length_tokens=200
    )
    assert corpus.stop_ids == (using.convert_tokens_to_ids("<|im_end|>"),)
    assert learned(corpus, using) == ["巴黎。<|im_end|>"]


def test_every_source_counts_and_a_cut_row_does_not(tmp_path: Path) -> None:
    using = tokenizer()
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "Hello"}])
    chat = write_jsonl(tmp_path / "chat.jsonl", [{"messages": [*TALK, *TALK]}])
    config = recipe(tmp_path / "a", SourceConfig(str(text), "text"), SourceConfig(str(chat), "chat"))
    whole = prepare(dataclasses.replace(config, chat_template="chatml", max_length_tokens=200), using, 0, Solo())
    assert whole.stop_ids == tuple(sorted([using.eos_token_id, using.convert_tokens_to_ids("<|im_end|>")]))
    ids = whole.train.tokens(1)[0].tolist()
    at = ids.index(using.convert_tokens_to_ids("<|im_start|>"), 40)  # the row is cut right behind a special token
    cut = prepare(dataclasses.replace(config, chat_template="chatml", max_length_tokens=at + 1), using, 0, Solo())
    assert cut.stop_ids == (using.eos_token_id,)


def test_id_0_is_a_token(tmp_path: Path) -> None:
    using = tokenizer(eos_token="<s>")
    assert using.eos_token_id == 0
    assert corpus_of(tmp_path, [{"text": "Hello"}], "text", using).stop_ids == (0,)


@pytest.mark.parametrize(("own", "expected"), [(0, [0, 5]), ([0, 7], [0, 5, 7]), (None, [5]), (5, [5])])
def test_the_ends_of_the_model_are_kept(own: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In its generation settings, which checkpoints carry; id 0 is a token."""
    from train.objectives import causal_lm

    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    objective: Any = causal_lm.CausalLM.__new__(causal_lm.CausalLM)
    objective.data = SimpleNamespace(corpus=SimpleNamespace(stop_ids=(5,)), shape=SimpleNamespace(packed=False))
    objective.base = SimpleNamespace(load=lambda packed: model)
    monkeypatch.setattr(causal_lm.loss_head, "install", lambda _: None)
    assert objective.load_model().generation_config.eos_token_id == expected


def test_rows_without_answers_end_as_an_answer_to_them_would(tmp_path: Path) -> None:
    using = tokenizer()
    using.chat_template = NEEDS_SYSTEM
    corpus = corpus_of(
        tmp_path,
        [{"messages": [SYSTEM, TALK[0]]}],
        "chat",
        using,
        label_spec=LabelSpec(asks=True),
        chat_template="tokenizer",
        max_length_tokens=200,
    )
    assert corpus.stop_ids == (using.convert_tokens_to_ids("<|im_end|>"),)


def test_a_table_of_the_cache_knows_its_ends(tmp_path: Path) -> None:
    found = [
        corpus_of(tmp_path, [{"messages": TALK}], "chat", tokenizer(), chat_template="chatml", max_length_tokens=200)
        for _ in range(2)
    ]
    assert "from the cache" in found[1].lines[0]
    assert found[0].stop_ids == found[1].stop_ids != ()


def test_a_stream_ends_as_its_first_rows_do(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}])
    config = recipe(
        tmp_path / "cache",
        SourceConfig(str(path), "chat"),
        chat_template="chatml",
        streaming=True,
        max_length_tokens=99,
    )
    using = tokenizer()
    assert stream(config, using, 0, Solo()).stop_ids == (using.convert_tokens_to_ids(CHATML_MARKS[1]),)
