"""Rows of users' files as examples, and their encoding with a checkpoint's tokenizer and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.config import parse
from eval.task_rows import read_items
from eval.tasks import TASKS
from tests.support import eval_checkpoints
from zerotune.common.errors import UserError
from zerotune.data.rows import load, local
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Generate, Generated, Score, Scored

USER, ASSISTANT = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
SYSTEM = {"role": "system", "content": "Be kind."}
HISTORY = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prompter(**changes: Any) -> Prompter:
    settings = {
        "template": eval_checkpoints.CHATML,
        "raw": False,
        "context_tokens": 128,
        "max_new_tokens": 16,
        "window_tokens": 0,
        "end_ids": (),
        "name": "tiny",
    }
    return Prompter(eval_checkpoints.tokenizer(), **(settings | changes))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"question": "Q?", "answer": "A."}, [USER, ASSISTANT]),
        ({"prompt": "Q?", "response": "A.", "more": 1}, [USER, ASSISTANT]),
        ({"instruction": "Q?", "input": "", "output": "A."}, [USER, ASSISTANT]),
        ({"instruction": "Q", "input": "?", "output": "A."}, [{"role": "user", "content": "Q\n?"}, ASSISTANT]),
        ({"messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        ({"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}, [USER, ASSISTANT]),
        ({"system": "Be kind.", "question": "Q?", "answer": "A."}, [SYSTEM, USER, ASSISTANT]),
        ({"system": "no", "messages": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"system": None, "question": "Q?", "answer": "A.", "tools": []}, [USER, ASSISTANT]),
        ({"instruction": "Q?", "output": "A.", "history": [["一", "二"]]}, [*HISTORY, USER, ASSISTANT]),
        ({"messages": [{"role": "developer", "content": "Be kind."}, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}, ASSISTANT]}, [USER, ASSISTANT]),
    ],
)
def test_every_form_of_a_conversation(row: Any, messages: Any, tmp_path: Path) -> None:
    (item,) = load(local(write(tmp_path / "rows.jsonl", row)), TASKS["qa"].load)
    assert list(item.messages) == messages
    assert item.id.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("qa", {"text": "alone"}, "no question with a reference answer"),
        ("qa", {"question": "Q?"}, "field `answer` is missing"),
        ("qa", {"question": "Q?", "anwser": "A."}, "its columns: question, anwser"),
        ("qa", {"": "Q?", "answer ": "A."}, "its columns: (unnamed), `answer `"),
        ("qa", {"question": "Q?", "answer": None}, "field `answer` is null"),
        ("qa", {"question": "Q?", "answer": 42}, "field `answer` is not text: it is a number"),
        ("qa", {"question": "  ", "answer": "A."}, "field `question` is empty"),
        ("qa", {"messages": "Q?"}, "not a list"),
        ("qa", {"messages": [{"role": "boss", "content": "Q?"}]}, "'boss'"),
        ("qa", {"messages": [{"role": "user"}]}, "messages[0] has no `content`; its keys: role"),
        ("qa", {"messages": [ASSISTANT]}, "no question"),
        ("qa", {"qestion": "Q?", "answer": "A."}, "field `question` is missing; its columns: qestion, answer"),
        ("qa", {"qestion": "Q?"}, "fits no known format (messages or conversations; question and answer; "),
        ("qa", {"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "messages[1].tool_calls[0] has no name"),
        (
            "qa",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "'image': only text is read",
        ),
        ("qa", {"instruction": "Q?", "output": "A.", "history": ["Q"]}, "field `history` is not a list of pairs"),
        ("perplexity", {"question": "Q?"}, "field `answer` is missing"),
        ("samples", {"messages": [SYSTEM]}, "nothing is asked: no turn of the user"),
    ],
)
def test_bad_rows_are_named(task: str, row: Any, reason: str, tmp_path: Path) -> None:
    good = {"question": "Q?", "answer": "A."}
    with pytest.raises(UserError) as refused:
        load(local(write(tmp_path / "rows.jsonl", good, row)), TASKS[task].load)
    assert "rows.jsonl:2: " in str(refused.value)
    assert reason in str(refused.value)


def test_broken_lines_are_named_and_ten_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "Q?", "answ\n' + b'{"question": "\xff", "answer": "A."}\n' + b'{"a": 1}\n' * 12)
    with pytest.raises(UserError) as refused:
        load(local(str(path)), TASKS["qa"].load)
    message = str(refused.value)
    assert message.startswith("14 rows cannot be evaluated")
    assert "rows.jsonl:1: " in message
    assert "rows.jsonl:10: " in message
    assert "rows.jsonl:11: " not in message
    assert message.endswith("(and 4 more)")


def test_rows_on_one_line_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps([{"question": "Q?", "answer": "A."}, {"question": "Q?"}, {"question": "R?", "answer": "B"}])
    )
    with pytest.raises(UserError, match=r"^1 row cannot be evaluated:\n.*rows\.json:1, row 2: field `answer` "):
        load(local(str(path)), TASKS["qa"].load)
    one, _, two = load(local(str(path)), TASKS["samples"].load)
    assert (one.id, two.id) == (f"{path}:1, row 1", f"{path}:1, row 3")


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    names = ("b.jsonl", "a.jsonl")
    paths = [write(tmp_path / name, {"question": f"{name}?", "answer": "A."}) for name in names]
    assert asked(paths[0], "--data", paths[1], "--data", str(tmp_path)) == ["b.jsonl?", "a.jsonl?"]


def asked(path: str, *options: str) -> list[str]:
    words = ["--model", "m", "--tasks", "qa", "--data", path, *options]
    return [item.messages[0]["content"] for item in read_items(TASKS["qa"], parse(words))]


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        asked(write(tmp_path / "rows.jsonl"))


def test_answers_are_scored_with_their_end_of_turn() -> None:
    asked = prompter()
    first, second = asked.assistant_turns([USER, ASSISTANT, {"role": "user", "content": "And?"}, ASSISTANT])
    decode = asked.tokenizer.decode
    assert decode(first.ids[: first.first]) == "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    assert decode(first.ids[first.first :]) == decode(second.ids[second.first :]) == "A.<|im_end|>"
    assert decode(second.ids[: second.first]).endswith(
        "A.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (first.bytes, first.ids[: first.first]) == (2, asked.chat_prompt([USER]))


def test_raw_puts_nothing_between() -> None:
    (passage,) = prompter(raw=True).assistant_turns([USER, ASSISTANT])
    assert prompter().tokenizer.decode(passage.ids) == "Q?A.<|endoftext|>"


def test_the_end_of_turn_stops_an_answer() -> None:
    """The tokenizer's end is <|endoftext|> alone, as in base models; ChatML's end must stop too."""
    words = eval_checkpoints.tokenizer()
    ends = words.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert prompter().stop_ids == tuple(sorted(ends))
    assert prompter(raw=True, end_ids=(77,)).stop_ids == (ends[0], 77)


def test_no_template_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"tiny: its tokenizer has no chat template.*--template"):
        prompter(template=None).chat_prompt([USER])


def test_a_template_that_refuses_is_an_error() -> None:
    with pytest.raises(UserError, match="rejects this conversation: no system"):
        prompter(template="{{ raise_exception('no system') }}").chat_prompt([USER])


def test_a_template_that_insists_on_a_system_message_still_tells_its_end() -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('a system first') }}{% endif %}"
    using = prompter(template=template + eval_checkpoints.CHATML)
    assert using.stop_ids == prompter().stop_ids
    assert using.chat_prompt([{"role": "system", "content": "Be brief."}, USER])


def test_a_template_without_continuation_is_an_error() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}NOW{% endif %}"
    with pytest.raises(UserError, match="renders an answered conversation differently"):
        prompter(template=template).assistant_turns([USER, ASSISTANT])


@pytest.mark.parametrize("text", ["The capital of France", "敏捷的狐狸", "x"])
def test_the_first_token_of_a_text_is_not_scored(text: str) -> None:
    passage = prompter().document(text)
    first = prompter().tokenizer.decode(passage.ids[:1])
    assert prompter().tokenizer.decode(passage.ids) == text
    assert passage.first == 1
    if text.isascii():
        assert passage.bytes == len(text.encode()) - len(first.encode())


def test_a_start_token_lets_the_first_token_be_scored() -> None:
    from tokenizers.processors import TemplateProcessing

    words = eval_checkpoints.tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    started = Prompter(words, None, False, 128, 16, 0, (), "tiny")
    passage = started.document("Paris")
    assert (passage.ids[0], passage.first, passage.bytes) == (1, 1, 5)
    assert Prompter(words, None, True, 128, 16, 0, (), "tiny").chat_prompt([USER])[0] == 1


def test_tasks_ask_and_score_without_a_model(tmp_path: Path) -> None:
    """As training uses them: a reward is a task's own score."""
    path = write(tmp_path / "rows.jsonl", {"question": "Capital of France?", "answer": "Paris"})
    (item,) = load(local(path), TASKS["qa"].load)
    (request,) = TASKS["qa"].ask(item, prompter())
    assert isinstance(request, Generate)
    assert request.max_new_tokens == 16
    assert TASKS["qa"].score(item, [Generated("paris.")]).values["exact_match"] == 1.0
    assert TASKS["qa"].score(item, [Generated("Lyon")]).values["exact_match"] == 0.0


def test_long_texts_become_windows_that_score_every_token_once(tmp_path: Path) -> None:
    text = " ".join(eval_checkpoints.TEXT * 3)
    (item,) = load(local(write(tmp_path / "rows.jsonl", {"text": text})), TASKS["perplexity"].load)
    asked = prompter(window_tokens=32)
    requests = [request for request in TASKS["perplexity"].ask(item, asked) if isinstance(request, Score)]
    whole = asked.document(text)
    assert len(requests) > 3
    assert all(len(request.prefix_ids) + len(request.continuation_ids) <= 32 for request in requests)
    assert sum((request.continuation_ids for request in requests), ()) == whole.ids[1:]
    assert sum(request.bytes for request in requests) == whole.bytes
    sample = TASKS["perplexity"].score(item, [Scored(-2.0, len(r.continuation_ids), r.bytes) for r in requests])
    expected = {"nll": 2.0 * len(requests), "tokens": len(whole.ids) - 1, "bytes": whole.bytes}
    assert {name: sample.values[name] for name in expected} == expected
