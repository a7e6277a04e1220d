"""Prompts that are conversations, as the messages that a reward model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.ranks import Solo
from train.config import DataConfig, SourceConfig
from train.data.prepare import LabelSpec, prepare
from train.data.sources import find
from train.objectives.ppo.conversations import messages_before, read_conversations
from train.objectives.ppo.prompts import Prompt, row_prompts

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = ("Who are you?", "I am a cat.", "What do you eat, and when, and where, and why?", "Fish.")
DIALOGUE = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(TURNS)]


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def asked(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], kind: str, longest: int) -> dict[str, Prompt]:
    """The prompts of rows that share one line, by their places."""
    (folder / "rows.json").write_text(json.dumps(rows))
    source = SourceConfig(str(folder / "rows.json"), kind)
    data = DataConfig(
        train=[source], cache_folder=str(folder / "cache"), max_length_tokens=longest, system_prompt=SYSTEM["content"]
    )
    corpus = prepare(data, tokenizer, 1, Solo(), LabelSpec())
    said = read_conversations([find(source, "data.train[0]")], data.system_prompt)
    prompts = row_prompts(corpus.train, [0] if kind == "text" else [], 2, longest, said)
    return {prompt.row.rpartition(":")[2]: prompt for prompt in prompts if prompt}


def rendered(tokenizer: Any, messages: Any, **options: Any) -> str:
    text: str = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options)
    return text


def test_prompt_messages_end_before_the_last_answer(tmp_path: Path, tokenizer: Any) -> None:
    """Of a row that was cut, the last answer that is left."""
    rows = [{"messages": DIALOGUE}, {"messages": DIALOGUE[:2]}]
    both, one = (SYSTEM, *DIALOGUE[:3]), (SYSTEM, *DIALOGUE[:1])
    without_answer = len(tokenizer(rendered(tokenizer, both))["input_ids"])
    for longest, first in ((200, both), (without_answer, one)):
        prompts = asked(tmp_path, tokenizer, rows, "chat", longest)
        assert {row: prompt.messages for row, prompt in prompts.items()} == {"1, row 1": first, "1, row 2": one}
        for prompt in prompts.values():
            assert tokenizer.decode(prompt.ids) == rendered(tokenizer, prompt.messages, add_generation_prompt=True)


def test_texts_have_no_messages(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "the cat sat down on the mat"}, {"text": "the dog ran in the park"}]
    prompts = asked(tmp_path, tokenizer, rows, "text", 100)
    assert {row: prompt.messages for row, prompt in prompts.items()} == {"1, row 1": (), "1, row 2": ()}


def test_messages_before_stops_at_the_last_answer() -> None:
    assert messages_before(tuple(DIALOGUE), 1) == tuple(DIALOGUE[:3])
    assert messages_before(tuple(DIALOGUE), 5) == tuple(DIALOGUE[:3])
