"""F14: rows that cannot be used are refused at the start with file:line: reason, or left out with a count."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.data_tools import recipe, tokenizer
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import prepare
from zerotune.common.errors import UserError

GOOD = {"question": "What is the capital of France?", "answer": "Paris."}
LONG = {"question": "long", "answer": "长" * 350_000}  # one line of a megabyte


def line(value):
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


BAD_LINES = [
    (b'{"question": "cut off", "ans\n', "not valid JSON: cut off (Unterminated string starting at)"),
    (b'{"question": "bytes", "answer": "\xe4\xbd"}\n', "not UTF-8: byte 0xe4 at column 34"),
    (line({"question": "no answer"}), "field `answer` is missing"),
    (line({"question": "null", "answer": None}), "field `answer` is null"),
    (line({"question": "number", "answer": 42}), "field `answer` is not text: it is a number"),
    (line({"question": "object", "answer": {"text": "42"}}), "field `answer` is not text: it is an object"),
    (line({"question": "empty", "answer": ""}), "field `answer` is empty"),
    (line({"question": "  ", "answer": "white space"}), "field `question` is empty"),
    (b'{"question": "half", "answer": "\\ud800"}\n', "field `answer` holds half a surrogate pair: \\ud800"),
    (line(["a", "list"]), "not an object: a row must be {...}, this is a list"),
    (
        line({"question": "word " * 300, "answer": "x"}),
        "nothing left to learn after truncation: the first answer begins",
    ),
]


def run(folder, path, form="qa", **options):
    config = recipe(folder / "cache", SourceConfig(str(path), form), max_length_tokens=128, **options)
    return prepare(config, tokenizer(), 0, Solo())


@pytest.mark.parametrize(("content", "reason"), BAD_LINES, ids=[reason.split(":")[0] for _, reason in BAD_LINES])
def test_each_fault_is_refused_with_its_line_or_left_out_with_a_count(tmp_path, content, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(GOOD) + b"\n" + content + line(GOOD))
    with pytest.raises(UserError) as caught:
        run(tmp_path, path)
    message = str(caught.value).splitlines()
    assert message[0] == "1 of 3 rows cannot be used:"
    assert message[1].startswith(f"  {path}:3: {reason}")
    assert caught.value.exit_code == 64

    corpus = run(tmp_path, path, on_bad_row="skip")
    assert [corpus.train.row_id(row) for row in range(len(corpus.train))] == [f"{path}:1", f"{path}:4"]
    kind = reason.split(":")[0]
    assert any(f"1 of 3 rows skipped: 1 {kind}; the first is {path}:3: {reason}" in said for said in corpus.lines)


def test_all_faults_at_once_are_one_message(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(content for content, _ in BAD_LINES[:-1]) * 2 + line(GOOD))
    with pytest.raises(UserError) as caught:
        run(tmp_path, path)
    message = str(caught.value).splitlines()
    assert message[0] == "20 of 21 rows cannot be used:"
    assert [text.split(": ")[0].strip() for text in message[1:11]] == [f"{path}:{n}" for n in range(1, 11)]
    assert message[11] == "  and 10 more"
    corpus = run(tmp_path, path, on_bad_row="skip")
    assert len(corpus.train) == 1


def test_a_line_of_a_megabyte_is_no_fault(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(GOOD) + line(LONG))
    assert path.stat().st_size > 1_000_000
    assert run(tmp_path, path).train.lengths_n.tolist()[1] == 128


def test_nothing_but_faults_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line({"question": "x", "answer": None}))
    with pytest.raises(UserError, match="there is no row to learn from; 1 of 1 row skipped: 1 field `answer` is null"):
        run(tmp_path, path, on_bad_row="skip")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="there is no row to learn from"):
        run(tmp_path, path)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_column_that_no_row_has_is_one_message(tmp_path, policy):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line({"query": "x", "reply": "y", "id": 1}) * 700)
    with pytest.raises(
        UserError, match=r"data\.train\[0\] .*needs question and answer; field `question` is missing .*query, reply, id"
    ):
        run(tmp_path, path, on_bad_row=policy)


def test_faults_in_every_kind_of_file(tmp_path):
    (tmp_path / "a.json").write_text('[\n {"question": "q", "answer": "a"},\n {"question": "q", "answer": 1}\n]')
    (tmp_path / "b.csv").write_bytes(b'question,answer\r\n"two\r\nlines",\r\nq,\xff\r\n')
    values = [{"question": "q", "answer": "a"}, {"question": "q", "answer": None}]
    parquet.write_table(pa.Table.from_pylist(values), tmp_path / "c.parquet")
    with pytest.raises(UserError) as caught:
        run(tmp_path, tmp_path)
    assert str(caught.value).splitlines()[1:-1] == [
        f"  {tmp_path}/a.json:3: field `answer` is not text: it is a number",
        f"  {tmp_path}/b.csv:2: field `answer` is empty",
        f"  {tmp_path}/b.csv:4: not UTF-8: byte 0xff at column 3",
        f"  {tmp_path}/c.parquet:2: field `answer` is null",
    ]


def test_what_was_skipped_before_is_still_refused_when_asked_to(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(GOOD) + line({"question": "q", "answer": None}))
    assert len(run(tmp_path, path, on_bad_row="skip").train) == 1
    with pytest.raises(UserError, match=r"rows\.jsonl:2: field `answer` is null"):
        run(tmp_path, path)
