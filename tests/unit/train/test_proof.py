"""Trained rows have the tokens that evaluation asks for the same content; where they do not, it is said."""

from __future__ import annotations

from datetime import date

import pytest

from tests.support.data_tools import corpus_of, tokenizer
from train.config import DataConfig, SourceConfig
from train.data.label_encoder import TO_PREDICT
from train.data.proof import Inference, about_requests, first_windows
from train.data.training_templates import folder

DAY = date(2026, 3, 4)
HEADER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}Bot: {{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Bot: {% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def lines_of(place, rows, form="chat", **options):
    using = tokenizer()
    corpus = corpus_of(place, rows, form, using, **options)
    source = SourceConfig(corpus.train.parts[0].names[0], form)
    data = DataConfig(train=[source], max_length_tokens=64, system_prompt=options.get("system_prompt"))
    inference = Inference(data, TO_PREDICT, using, DAY, corpus.stop_ids, "model")
    return about_requests(inference, [source], corpus.train.parts)


def chats(count, system=False):
    first = [{"role": "system", "content": "Sei kurz."}] if system else []
    return [
        {"messages": [*first, {"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": f"第{k}个"}]}
        for k in range(count)
    ]


@pytest.mark.parametrize("template", ["plain", "chatml", "raw"])
def test_own_templates_are_those_of_evaluation(tmp_path, template):
    lines = lines_of(tmp_path, chats(20, system=True), chat_template=template, system_prompt="Be brief.")
    assert lines == ["the first rows (8) have the tokens that evaluation asks, and learn to stop"]


def test_texts_are_those_of_evaluation(tmp_path):
    assert "first rows (3)" in lines_of(tmp_path, [{"text": f"你好 {k}"} for k in range(3)], "text")[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [(HEADER, "learning does not begin after the prompt"), (ENDLESS, "does not end generation")],
    ids=["header", "endless"],
)
def test_a_template_with_a_fault_is_a_warning(tmp_path, source, said):
    path = tmp_path / "faulty.jinja"
    path.write_text(source, encoding="utf-8")
    (line,) = lines_of(tmp_path, chats(3), chat_template=str(path))
    assert line.startswith("WARNING: data.train[0]: 3 of the first 3 rows differ from what evaluation asks")
    assert f"{tmp_path}/rows.jsonl:1: " in line
    assert said in line


def test_another_system_prompt_than_in_training_is_found(tmp_path):
    using, rows = tokenizer(), chats(2)
    corpus = corpus_of(tmp_path, rows, "chat", using, system_prompt="Be brief.")
    source = SourceConfig(corpus.train.parts[0].names[0], "chat")
    data = DataConfig(train=[source], max_length_tokens=64, system_prompt="Be long.")
    proof = Inference(data, TO_PREDICT, using, DAY, corpus.stop_ids, "model").proof(
        "rows", source, first_windows(corpus.train.parts, 9)
    )
    assert (proof.rows, proof.wrong, proof.systems) == (2, 2, 2)
    assert "asked" in proof.different[0]


def test_windows_are_spread_over_all_rows(tmp_path):
    corpus = corpus_of(tmp_path, chats(100), "chat")
    numbers = [int(part.table.column("number_n")[row]) for part, row in first_windows(corpus.train.parts, 3, True)]
    assert numbers in ([0, 50, 99], [0, 49, 99])
    assert [row for _, row in first_windows(corpus.train.parts, 3)] == [0, 1, 2]
    assert first_windows([], 3, True) == []


def test_a_template_that_rewrites_earlier_turns_is_no_warning(tmp_path):
    """Qwen3's template writes empty reasoning in the last turn alone, its training version in every turn."""
    using, rows = tokenizer(), [{"messages": [*chats(2)[0]["messages"], *chats(2)[1]["messages"]]}]
    using.chat_template = (folder() / "qwen3.jinja").read_text(encoding="utf-8")
    corpus = corpus_of(tmp_path, rows, "chat", using, chat_template="tokenizer", max_length_tokens=512)
    source = SourceConfig(corpus.train.parts[0].names[0], "chat")
    data = DataConfig(train=[source], max_length_tokens=512)
    inference = Inference(data, TO_PREDICT, using, DAY, corpus.stop_ids, "model")
    proof = inference.proof("rows", source, first_windows(corpus.train.parts, 9))
    assert (proof.rows, proof.wrong, proof.earlier) == (1, 0, 1)
    (line,) = about_requests(inference, [source], corpus.train.parts)
    assert "apart from earlier turns in 1 row" in line
