"""One reader of rows: what training makes of each shape of a row, and that evaluation makes the same of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from eval.config import parse
from eval.task_rows import read_items
from eval.tasks import TASKS
from eval.tasks.classification import LabelledText as Classified
from eval.tasks.reward_model import PreferencePair
from eval.tasks.sequence_classification import ClassItem, RegressionItem
from eval.tasks.token_classification import Sentence
from zerotune.common.errors import UserError
from zerotune.data.conversations import Conversation
from zerotune.data.fields import Fields, RowError
from zerotune.data.files import read
from zerotune.data.formats import FORMATS
from zerotune.data.labelled import Labelled
from zerotune.data.preference import Preference
from zerotune.data.raw_row import Row
from zerotune.data.rows import Example, load
from zerotune.data.tagged import Tagged

ROOT = Path(__file__).resolve().parents[3]
U, A, S = (
    {"role": role, "content": text} for role, text in (("user", "Q?"), ("assistant", "A."), ("system", "Be kind."))
)
B = {"role": "assistant", "content": "B."}
HUMAN, GPT = {"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}
BARE = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": BARE}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
OPENAI = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLS, RESULT = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "7"}
SEVEN = {"role": "tool", "tool_call_id": "c1", "content": "7"}
CALLS_BY_ID = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]}
HERMES = {"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'}
HALF = json.loads('"half \\ud83d"')
NO_PAIR = "field `sentence{}` is missing: two sentences need sentence1 and sentence2, one is sentence or text"
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

# (format, row, the text, messages or rest that both sides read, or a part of the reason why neither reads it)
Shape = tuple[str, dict[str, Any], Any]
TEXTS: dict[str, Shape] = {
    "a text": ("text", {"text": "One."}, "One."),
    "a text in Thai": ("text", {"text": "กรุงเทพฯ 🐘"}, "กรุงเทพฯ 🐘"),
    "a blank text": ("text", {"text": " "}, RowError("field `text` is empty")),
    "a list of texts": ("text", {"text": ["a"]}, RowError("field `text` is not text: it is a list")),
    "half a surrogate pair": ("text", {"text": HALF}, RowError("field `text` holds half a surrogate pair")),
}
CONVERSATIONS: dict[str, Shape] = {
    "a question": ("qa", {"question": "Q?", "answer": "A."}, [U, A]),
    "several answers": ("qa", {"question": "Q?", "answer": ["A.", "C."]}, [U, A]),
    "no answers": ("qa", {"question": "Q?", "answer": []}, RowError("field `answer` is an empty list")),
    "a null among answers": ("qa", {"question": "Q?", "answer": ["A.", None]}, RowError("answer[1] is not text")),
    "a missing answer": ("qa", {"question": "Q?"}, RowError("field `answer` is missing")),
    "a null answer": ("qa", {"question": "Q?", "answer": None}, RowError("field `answer` is null")),
    "a number": ("qa", {"question": "Q?", "answer": 4}, RowError("field `answer` is not text: it is a number")),
    "half a pair in a question": ("qa", {"question": HALF, "answer": "A."}, RowError("holds half a surrogate pair")),
    "a system column": ("qa", {"question": "Q?", "answer": "A.", "system": "Be kind."}, [S, U, A]),
    "a null system column": ("qa", {"question": "Q?", "answer": "A.", "system": None}, [U, A]),
    "a blank system column": ("qa", {"question": "Q?", "answer": "A.", "system": " "}, RowError("`system` is empty")),
    "tools beside a question": (
        "qa",
        {"question": "Q?", "answer": "A.", "tools": TOOLS},
        [U, A],
    ),  # counted as left out
    "a prompt": ("pr", {"prompt": "Q?", "response": "A."}, [U, A]),
    "a prompt of messages": (
        "pr",
        {"prompt": [*EARLIER, U], "response": [A]},
        [EARLIER[0], {**EARLIER[1], "learned": False}, U, A],
    ),
    "a prompt of messages without an answer": ("pr", {"prompt": [U]}, RowError("field `response` is missing")),
    "roles of ShareGPT": ("chat", {"messages": [{**U, "role": "human"}, {**A, "role": "model"}]}, [U, A]),
    "a role in capitals": ("chat", {"messages": [{**U, "role": "User"}, A]}, RowError("; did you mean user?")),
    "a role of nobody": ("chat", {"conversations": [HUMAN, {**GPT, "from": "chatgpt"}]}, RowError("mean gpt?")),
    "trl's completion": ("pr", {"prompt": "Q?", "completion": "A."}, RowError("field `response` is missing")),
    "an instruction": ("io", {"instruction": "Q?", "output": "A."}, [U, A]),
    "an input": (
        "io",
        {"instruction": "Q", "input": "?", "output": "A."},
        [{"role": "user", "content": "Q\n?"}, A],
    ),
    "a blank input": ("io", {"instruction": "Q?", "input": " \n", "output": "A."}, [U, A]),
    "an empty list as input": ("io", {"instruction": "Q?", "input": [], "output": "A."}, [U, A]),
    "a number as input": ("io", {"instruction": "Q?", "input": 3, "output": "A."}, RowError("`input` is not text")),
    "history": ("io", {"instruction": "Q?", "output": "A.", "history": [["a", "b"]]}, [*EARLIER, U, A]),
    "history as JSON": ("io", {"instruction": "Q?", "output": "A.", "history": '[["a", "b"]]'}, [*EARLIER, U, A]),
    "history and system": (
        "io",
        {"instruction": "Q?", "output": "A.", "history": [["a", "b"]], "system": "Be kind."},
        [S, *EARLIER, U, A],
    ),
    "history of no pairs": (
        "io",
        {"instruction": "Q?", "output": "A.", "history": ["a"]},
        RowError("field `history` is not a list of pairs"),
    ),
    "messages": ("chat", {"messages": [U, A]}, [U, A]),
    "a developer": ("chat", {"messages": [{"role": "developer", "content": "Be kind."}, U, A]}, [S, U, A]),
    "a system column beside messages": ("chat", {"messages": [U, A], "system": "Be kind."}, [S, U, A]),
    "a system message wins": ("chat", {"messages": [S, U, A], "system": "No."}, [S, U, A]),
    "messages as JSON": ("chat", {"messages": json.dumps([U, A])}, [U, A]),
    "no messages": ("chat", {"messages": []}, RowError("field `messages` is empty")),
    "no list": ("chat", {"messages": "Q?"}, RowError("field `messages` is not a list")),
    "null beside conversations": ("chat", {"messages": None, "conversations": [HUMAN, GPT]}, [U, A]),
    "ShareGPT": ("chat", {"conversations": [HUMAN, GPT]}, [U, A]),
    "OpenAI's words in conversations": ("chat", {"conversations": [U, A]}, [U, A]),
    "ShareGPT's words in messages": ("chat", {"messages": [HUMAN, GPT]}, [U, A]),
    "an unknown role": ("chat", {"messages": [{"role": "boss", "content": "x"}, A]}, RowError("unknown role: 'boss'")),
    "a turn after the last answer": ("chat", {"messages": [U, A, U]}, [U, A]),
    "no answer": ("chat", {"messages": [U]}, RowError("no answer: no turn of the assistant")),
    "a null content": ("chat", {"messages": [U, {**A, "content": None}]}, RowError("messages[1].content is not text")),
    "a message without content": (
        "chat",
        {"messages": [{"role": "user", "value": "Q?"}, A]},
        RowError("messages[0] has no `content`; its keys: role, value"),
    ),
    "a turn without value": (
        "chat",
        {"conversations": [{"from": "human", "content": "Q?"}, GPT]},
        RowError("conversations[0] has no `value`; its keys: from, content"),
    ),
    "a call without value": (
        "chat",
        {"conversations": [HUMAN, {"from": "function_call"}, GPT]},
        RowError("conversations[1] has no `value`; its keys: from"),
    ),
    "a message without role": ("chat", {"messages": [{"content": "Q?"}, A]}, RowError("messages[0] has no `role`")),
    "parts": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "Q?"]}, A]},
        [{"role": "user", "content": "Q\n?"}, A],
    ),
    "an image": ("chat", {"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}, RowError("only text")),
    "a name": ("chat", {"messages": [{**U, "name": "Ann"}, A]}, [U, A]),
    "reasoning": ("chat", {"messages": [U, {**A, "reasoning": "T"}]}, [U, {**A, "reasoning_content": "T"}]),
    "a part of thoughts": (
        "chat",
        {"messages": [U, {**A, "content": [{"type": "thinking", "thinking": "T"}, {"type": "text", "text": "A."}]}]},
        [U, {**A, "reasoning_content": "T"}],
    ),
    "a user's reasoning": ("chat", {"messages": [{**U, "reasoning": "T"}, A]}, RowError("only the assistant reasons")),
    "a turn marked 0": ("chat", {"messages": [U, {**A, "weight": 0}, U, A]}, [U, {**A, "learned": False}, U, A]),
    "all turns marked 0": ("chat", {"messages": [U, {**A, "train": False}]}, RowError("no answer: every turn")),
    "half a mark": ("chat", {"messages": [U, {**A, "weight": 0.5}]}, RowError("messages[1].weight is 0.5")),
    "calls of OpenAI": (
        "chat",
        {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [OPENAI]}, SEVEN, A], "tools": TOOLS},
        [U, CALLS_BY_ID, SEVEN, A],
    ),
    "calls of Hugging Face": ("chat", {"messages": [U, CALLS, RESULT, A], "tools": TOOLS}, [U, CALLS, RESULT, A]),
    "functions of OpenAI": (
        "chat",
        {
            "messages": [
                U,
                {"role": "assistant", "content": None, "function_call": OPENAI["function"]},
                {"role": "function", "content": "7"},
                A,
            ],
            "functions": [BARE],
        },
        [U, CALLS, RESULT, A],
    ),
    "calls of ShareGPT": (
        "chat",
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "7"},
                GPT,
            ],
            "tools": json.dumps([BARE]),
        },
        [U, CALLS, RESULT, A],
    ),
    "calls of Hermes": ("chat", {"messages": [U, HERMES, RESULT, A], "tools": TOOLS}, [U, HERMES, RESULT, A]),
    "a result in JSON": (
        "chat",
        {"messages": [U, CALLS, {"role": "tool", "content": {"t": 7}}, A]},
        [U, CALLS, {"role": "tool", "content": '{"t": 7}'}, A],
    ),
    "an empty result": (
        "chat",
        {"messages": [U, CALLS, {"role": "tool", "content": ""}, A]},
        [U, CALLS, {"role": "tool", "content": ""}, A],
    ),
}
LABELS: dict[str, Shape] = {
    "a sentence": ("labelled", {"sentence": "S", "label": "yes"}, Labelled(("S",), "yes")),
    "a text with a label": ("labelled", {"text": "S", "label": " yes "}, Labelled(("S",), "yes")),
    "two sentences": ("labelled", {"sentence1": "S", "sentence2": "T", "label": "no"}, Labelled(("S", "T"), "no")),
    "null sentences": ("labelled", {"sentence": "S", "sentence1": None, "label": "no"}, Labelled(("S",), "no")),
    "a sentence and a second one": (
        "labelled",
        {"sentence": "S", "sentence2": "T", "label": "no"},
        Labelled(("S",), "no"),
    ),
    "no second sentence": ("labelled", {"sentence1": "S", "label": "no"}, RowError(NO_PAIR.format(2))),
    "no first sentence": ("labelled", {"sentence2": "T", "label": "no"}, RowError(NO_PAIR.format(1))),
    "a null second sentence": (
        "labelled",
        {"sentence1": "S", "sentence2": None, "label": "no"},
        RowError("field `sentence2` is null"),
    ),
    "a number as label": ("labelled", {"text": "S", "label": 1}, Labelled(("S",), 1)),
    "true as label": ("labelled", {"text": "S", "label": True}, RowError("label is true or false")),
    "a null label": ("labelled", {"text": "S", "label": None}, RowError("field `label` is null")),
    "half a pair in a sentence": ("labelled", {"text": HALF, "label": 1}, RowError("holds half a surrogate pair")),
    "tags": ("tagged", {"tokens": ["北", "京"], "tags": ["B-X", "O"]}, Tagged(("北", "京"), ("B-X", "O"))),
    "tags in numbers": ("tagged", {"tokens": ["a", "b"], "tags": [1, 0]}, Tagged(("a", "b"), (1, 0))),
    "tags in digits": ("tagged", {"tokens": ["a", "b"], "tags": ["1", "0"]}, Tagged(("a", "b"), (1, 0))),
    "too few tags": ("tagged", {"tokens": ["a", "b"], "tags": ["O"]}, RowError("length mismatch: ")),
    "no tokens": ("tagged", {"tokens": [], "tags": []}, RowError("empty sentence")),
    "a blank token": ("tagged", {"tokens": [" "], "tags": ["O"]}, RowError("token 0 (from 0) is empty")),
    "an unknown tag": ("tagged", {"tokens": ["a"], "tags": ["X"]}, RowError("unknown tag: ")),
    "a tag below 0": ("tagged", {"tokens": ["a"], "tags": [-1]}, RowError("unknown tag: ")),
}
PAIRS: dict[str, Shape] = {
    "texts": ("preference", {"prompt": "Q?", "chosen": "A.", "rejected": "B."}, Preference("Q?A.", "Q?B.")),
    "texts without a prompt": ("preference", {"chosen": "A.", "rejected": "B."}, Preference("A.", "B.")),
    "answers": ("preference", {"prompt": [U], "chosen": [A], "rejected": [B]}, ([U, A], [U, B])),
    "whole conversations": ("preference", {"prompt": None, "chosen": [U, A], "rejected": [U, B]}, ([U, A], [U, B])),
    "LLaMA-Factory": (
        "preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "B."}},
        ([U, A], [U, B]),
    ),
    "a system column beside a pair": (
        "preference",
        {"prompt": [U], "chosen": [A], "rejected": [B], "system": "Be kind."},
        ([S, U, A], [S, U, B]),
    ),
    "tools beside a pair": (
        "preference",
        {"prompt": [U], "chosen": [A], "rejected": [B], "tools": TOOLS},
        ([U, A], [U, B]),
    ),
    "a text as prompt of messages": (
        "preference",
        {"prompt": "Q?", "chosen": [A], "rejected": [B]},
        RowError("prompt is text, and not the first turn of the user in `chosen`"),
    ),
    "UltraFeedback": (
        "preference",
        {"prompt": "Q?", "chosen": [U, A], "rejected": [U, B]},
        ([U, A], [U, B]),
    ),
    "a number beside a prompt": (
        "preference",
        {"prompt": "Q?", "chosen": 1, "rejected": "B."},
        RowError("field `chosen` is neither text nor messages: it is a number"),
    ),
    "two kinds": ("preference", {"chosen": [U, A], "rejected": "B."}, RowError("chosen and rejected differ in kind")),
    "an end without an answer": (
        "preference",
        {"chosen": [U, A, U], "rejected": [U, B]},
        RowError("field `chosen` does not end with a turn of the assistant"),
    ),
    "numbers": ("preference", {"chosen": 1, "rejected": 2}, RowError("field `chosen` is neither text nor messages")),
}
SHAPES = {**TEXTS, **CONVERSATIONS, **LABELS, **PAIRS}
READ_BY = {"text": "perplexity", "labelled": "sequence_classification", "tagged": "token_classification"}


def shown(read: Any) -> Any:
    """What either side has read, in the form of the tables above."""
    if isinstance(read, (Conversation, Example)):
        return list(read.messages) or (read.text if isinstance(read, Example) else None)
    if isinstance(read, ClassItem):
        return Labelled(read.sentences, read.label)
    if isinstance(read, Sentence):
        return Tagged(read.tokens, tuple(int(tag) if tag.isdecimal() else tag for tag in read.tags))
    if isinstance(read, (Preference, PreferencePair)):
        sides = (read.chosen, read.rejected)
        texts = [side for side in sides if isinstance(side, str)]
        return Preference(*texts) if texts else tuple(map(shown, sides))
    return read


def check(read: Any, expected: Any) -> None:
    if isinstance(expected, RowError):
        with pytest.raises(RowError) as caught:
            read()
        assert str(expected) in str(caught.value)
    else:
        assert shown(read()) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_training_reads(name: str) -> None:
    form, row, expected = SHAPES[name]
    check(lambda: FORMATS[form].read(Fields(row)), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_evaluation_reads_the_same(name: str) -> None:
    form, row, expected = SHAPES[name]
    task = "reward_model" if form == "preference" else READ_BY.get(form, "perplexity")
    check(lambda: TASKS[task].load(Row("rows.jsonl", 1, row)), expected)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_row_s_tools_come_with_it(name: str) -> None:
    form, row, expected = CONVERSATIONS[name]
    if isinstance(expected, RowError):
        return
    read = FORMATS[form].read(Fields(row))
    assert isinstance(read, Conversation)
    assert read.tools == TASKS["perplexity"].load(Row("f", 1, row)).tools
    assert read.tools == (TOOLS if form == "chat" and ("tools" in row or "functions" in row) else None)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_table_reads_as_json(name: str, tmp_path: Path) -> None:
    """Parquet has every key in every object, null where a row does not say it."""
    form, row, expected = CONVERSATIONS[name]
    if isinstance(expected, RowError):
        return
    try:
        table = pyarrow.Table.from_pylist([row])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        pytest.skip("a table cannot hold such a row")
    parquet.write_table(table, tmp_path / "rows.parquet")
    (again,) = read(tmp_path / "rows.parquet")
    assert isinstance(again, Row)
    check(lambda: FORMATS[form].read(Fields(again.value)), expected)
    check(lambda: TASKS["perplexity"].load(again), expected)


# What the sides do with what they have read


def test_further_answers_are_right_in_evaluation_and_named_as_left_out_in_training() -> None:
    from train.data.tokenize import read_row

    left: Counter[str] = Counter()
    row = Row("f", 1, {"question": "Q?", "answer": ["A.", "C."]})
    read_row(row, "qa", {}, None, left=left)
    assert dict(left) == {"answers after the first": 1}
    assert TASKS["qa"].load(row).also_right == ("C.",)


def test_equal_sides_teach_nothing_and_are_not_preferred() -> None:
    row = {"prompt": "Q?", "chosen": "A.", "rejected": "A."}
    with pytest.raises(RowError, match="nothing to learn: chosen and rejected are the same"):
        FORMATS["preference"].read(Fields(row))
    assert TASKS["reward_model"].load(Row("f", 1, row)).chosen == "Q?A."


def test_words_classes_and_values_take_labels_of_their_type() -> None:
    def task(name: str, label: Any) -> Any:
        return TASKS[name].load(Row("f", 1, {"text": "S", "label": label}))

    assert task("classification", "yes") == Classified("f:1", ("S",), "yes")
    with pytest.raises(RowError, match="label is a number; a language model needs a label in words"):
        task("classification", 1)
    assert task("regression", "-1.5") == RegressionItem("f:1", ("S",), -1.5)
    with pytest.raises(RowError, match="neither the name nor the number of a class"):
        task("sequence_classification", 1.5)
    for label in ("many", "nan", 10**400):
        with pytest.raises(RowError, match="label is not a number"):
            task("regression", label)


def test_columns_say_which_format_a_row_has() -> None:
    """UltraChat has a prompt beside its messages; a corpus may have labels beside its text."""
    assert TASKS["qa"].load(Row("f", 1, {"prompt": "x", "messages": [U, A], "text": "y"})).messages == (U, A)
    assert TASKS["perplexity"].load(Row("f", 1, {"text": "One.", "label": 1})).text == "One."
    with pytest.raises(UserError, match=r"f:1: fits no known format \(.*\); its columns: 问题, 答案"):
        load([Row("f", 1, {"问题": "问？", "答案": "答。"})], TASKS["qa"].load)


@pytest.mark.parametrize(
    ("column", "missing"), [("answer", "question"), ("response", "prompt"), ("output", "instruction")]
)
def test_an_answer_without_a_question_names_the_missing_field(column: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"f:1: field `{missing}` is missing; its columns: {column}"):
        load([Row("f", 1, {column: "A."})], TASKS["qa"].load)


def test_columns_may_have_other_names_on_both_sides(tmp_path: Path) -> None:
    row = {"题目": "Q?", "答案": "A.", "question": "decoy", "id": 1}
    columns = {"question": "题目", "answer": "答案"}
    check(lambda: FORMATS["qa"].read(Fields(row, columns)), [U, A])
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    options = [f"--columns {ours}={theirs}" for ours, theirs in columns.items()]
    config = parse(f"--model m --tasks qa --data {file} {' '.join(options)}".split())
    (item,) = read_items(TASKS["qa"], config)
    assert item.messages == (U, A)
    with pytest.raises(UserError, match=r"--columns 题目: must be FIELD=COLUMN"):
        parse(f"--model m --tasks qa --data {file} --columns 题目".split())


def test_a_question_is_enough_where_nothing_is_compared() -> None:
    for row in ({"question": "Q?"}, {"question": "Q?", "answer": ""}, {"messages": [U]}, {"prompt": "Q?"}):
        assert TASKS["samples"].load(Row("f", 1, row)).messages == (U,)


def test_a_new_format_is_one_value(tmp_path: Path) -> None:
    """Recipes accept it, language models learn from it, and evaluation recognises its columns."""
    (tmp_path / "rows.jsonl").write_text('{"ask": "Q?", "reply": "A."}\n')
    code = f"""
from zerotune.data.formats import FORMATS, Format
from zerotune.data.questions import read_question
FORMATS["note"] = Format(("ask", "reply"), lambda fields: read_question(fields, "ask", "reply"))
from eval.tasks import TASKS
from train.config import SourceConfig
from train.data.sources import find
from train.data.tokenize import read_row
from train.registry import OBJECTIVES
from zerotune.data.raw_row import Row
assert "note" in OBJECTIVES["causal_lm"].formats and "note" in OBJECTIVES["ppo"].formats
source = find(SourceConfig(path="{tmp_path}/rows.jsonl", format="note"), "data.train[0]")
(row,) = (row.item for row in source.rows())
assert read_row(row, "note", {{}}, None).messages == list(TASKS["qa"].load(row).messages)
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "ok\n", done.stderr
