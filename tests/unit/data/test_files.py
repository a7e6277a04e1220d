"""Reading users' files: every row and every reason with its line; writing that never leaves half a file."""

from __future__ import annotations

import hashlib
import json
import os
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from zerotune.common.errors import CannotWriteError, UserError
from zerotune.common.files import sha256_file, write_atomically
from zerotune.data.files import BadRow, Row, expand, read


def rows_of(path, skip=0):
    """(line, value or reason) of each row."""
    return [(r.line, dict(r.value) if isinstance(r, Row) else r.reason) for r in read(path, skip)]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_gives_each_row_with_its_line_and_passes_over_blank_ones(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n\n   \n{"a": "x\u2028y"}\r\n{"a": 3}')
    assert rows_of(path) == [(1, {"a": 1}), (4, {"a": "x\u2028y"}), (5, {"a": 3})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_taken_off(tmp_path, name):
    content = {"a.jsonl": '{"text": "é"}', "a.json": '[{"text": "é"}]', "a.csv": "text\né\n", "a.txt": "é"}[name]
    [(_, value)] = rows_of(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))
    assert value == {"text": "é"}


def test_bad_lines_of_jsonl_do_not_stop_the_good_ones(tmp_path):
    lines = [
        b'{"a": 1}',
        b'{"a": "trunca',
        b'{"a": "\xff"}',
        b"[1, 2]",
        b'{"a": 1,}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 2}',
    ]
    found = dict(rows_of(written(tmp_path, "a.jsonl", b"\n".join(lines))))
    assert found[1] == {"a": 1}
    assert found[8] == {"a": 2}
    assert found[2].startswith("not valid JSON: cut off")
    assert found[3] == "not UTF-8: byte 0xff at column 8"
    assert found[4].startswith("not an object: ")
    assert found[5].startswith("not valid JSON: ")
    assert found[6] == "not valid JSON: nested too deeply"
    assert found[7].startswith("not valid JSON: ")
    assert len(found) == 8


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_line_of_a_megabyte_is_an_ordinary_line(tmp_path, name):
    long = "长" * 400_000
    content = {"a.jsonl": json.dumps({"text": long}, ensure_ascii=False), "a.csv": f"text\n{long}\n", "a.txt": long}[
        name
    ]
    [(_, value)] = rows_of(written(tmp_path, name, content))
    assert value == {"text": long}


PRETTY = """[
  {
    "a": 1,
    "b": [{"c": 2}]
  },

  {"a": 2}, {"a": 3},
  "no object"
]
"""


def test_elements_of_a_json_array_know_their_line(tmp_path):
    found = rows_of(written(tmp_path, "a.json", PRETTY))
    assert [line for line, _ in found] == [2, 7, 7, 8]
    assert found[0][1] == {"a": 1, "b": [{"c": 2}]}
    assert found[3][1] == "not an object: a row must be {...}, this is text"


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": 2}, 3,\n{"a": 4}]', '{"a": 1} {"a": 2} 3\n{"a": 4}'])
def test_rows_that_share_a_line_know_their_number(tmp_path, content):
    path = written(tmp_path, "a.json", content)
    places = [row.place for row in read(path)]
    assert places == [f"{path}:1, row 1", f"{path}:1, row 2", f"{path}:1, row 3", f"{path}:2"]
    assert str(list(read(path))[2]).startswith(f"{path}:1, row 3: not an object")
    table = written(tmp_path, "t.json", '{"x": {"a": 1}, "y": {"a": 2}}')
    assert [row.place for row in read(table)] == [f"{table}:1, row 1", f"{table}:1, row 2"]
    assert [row.place for row in read(table, 1)] == [f"{table}:1, row 2"]
    commas = written(tmp_path, "c.json", '[{"a": 1} {"a": 2}]')
    assert str(list(read(commas))[1]) == f"{commas}:1, row 1: not valid JSON: a comma is missing"


@given(
    values=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=12) | st.lists(st.integers())), max_size=6),
    indent=st.sampled_from([None, 1, 4]),
    in_array=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_json_files_read_back_what_was_written_with_true_lines(tmp_path_factory, values, indent, in_array):
    texts = [json.dumps(value, indent=indent) for value in values]
    content = "[" + ",\n".join(texts) + "]" if in_array else "\n".join(texts)
    path = written(tmp_path_factory.mktemp("json"), "a.json", content)
    lines, line = [], 1
    for text in texts:
        lines.append(line)
        line += text.count("\n") + 1
    assert rows_of(path) == list(zip(lines, values, strict=True))


def test_a_json_file_may_hold_one_object_a_line(tmp_path):
    path = written(tmp_path, "a.json", '{"a": 1}\n{"a": "cut\n{"a": 3}\n')
    found = rows_of(path)
    assert found[0] == (1, {"a": 1})
    assert found[1][0] == 2
    assert found[1][1].startswith("not valid JSON")
    assert found[2] == (3, {"a": 3})


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('[\n{"a": 1},\n{"a": "cut', 3, "cut off"),
        ('[\n{"a": 1}\n', 2, "cut off (no closing ])"),
        ('[\n{"a": 1},\n', 2, "cut off (nothing after the last comma)"),
        ('[\n{"a": 1}\n{"a": 2}]', 2, "a comma is missing"),
        ('[{"a": 1}, {"a": oops}, {"a": 2}]', 1, "the rest of the file is not read"),
    ],
)
def test_a_broken_json_array_says_where(tmp_path, content, line, reason):
    found = rows_of(written(tmp_path, "a.json", content))
    bad = [(at, text) for at, text in found if isinstance(text, str)]
    assert (1 if "oops" in content else 2, {"a": 1}) in found
    assert len(bad) == 1
    assert bad[0][0] == line
    assert reason in bad[0][1]


def test_a_broken_element_of_a_json_array_costs_only_itself(tmp_path):
    path = written(
        tmp_path, "a.json", b'[\n  {"a": 1},\n  {"a": oops,\n   "b": {\n  }},\n  {"a": "\xfe"},\n  {"a": 4}\n]'
    )
    found = rows_of(path)
    assert [line for line, _ in found] == [2, 3, 6, 7]
    assert found[1][1].startswith("not valid JSON: Expecting value")
    assert found[2][1] == "not UTF-8: byte 0xfe"
    assert found[3][1] == {"a": 4}


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", ""), ("b.json", " [ ] \n"), ("c.jsonl", "\n"), ("d.csv", "a\n")]
)
def test_a_file_without_rows_is_no_error_here(tmp_path, name, content):
    assert rows_of(written(tmp_path, name, content)) == []


def test_csv_with_embedded_line_feeds_and_carriage_returns(tmp_path):
    content = 'id,text\r\n1,"first\r\nsecond, ""quoted"""\r\n\r\n2,plain\r\n3,"中\n文"\r\n'
    assert rows_of(written(tmp_path, "a.csv", content)) == [
        (2, {"id": "1", "text": 'first\r\nsecond, "quoted"'}),
        (5, {"id": "2", "text": "plain"}),
        (6, {"id": "3", "text": "中\n文"}),
    ]


def test_bad_rows_of_csv(tmp_path):
    found = rows_of(written(tmp_path, "a.csv", b'a,b\n1\n1,2,3\n"\xff\n",2\nok,ok\n1,"never closed\nmore\n'))
    assert found == [
        (2, "not valid CSV: 1 fields where the header has 2"),
        (3, "not valid CSV: 3 fields where the header has 2"),
        (4, "not UTF-8: byte 0xff at column 2"),
        (6, {"a": "ok", "b": "ok"}),
        (7, "not valid CSV: a quote is opened here and never closed"),
    ]
    assert rows_of(written(tmp_path, "b.csv", "a,b,a\n1,2,3\n")) == [(1, "not valid CSV: the header repeats a")]


def test_parquet_counts_rows_and_keeps_types(tmp_path):
    values = [{"text": f"row {i}", "n": i, "list": [{"role": "user"}] if i % 2 else None} for i in range(25)]
    parquet.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet", row_group_size=10)
    assert rows_of(tmp_path / "a.parquet") == [(i + 1, value) for i, value in enumerate(values)]
    [(line, reason)] = rows_of(written(tmp_path, "b.parquet", b"PAR1 and then nothing"))
    assert (line, reason.split(":")[0]) == (1, "not a Parquet file")


def test_a_table_that_repeats_a_column_is_refused(tmp_path):
    parquet.write_table(pa.table([["x"], ["y"]], names=["a", "a"]), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [(1, "not a valid Parquet file: it repeats the columns a")]


def test_bad_bytes_inside_parquet_text(tmp_path):
    text = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [
        (1, {"text": "good"}),
        (2, "not UTF-8: byte 0xff"),
        (3, {"text": "fine"}),
    ]


def test_a_text_file_is_one_document_unless_lines_divide_it(tmp_path):
    whole = "First.\n\nSecond <|endoftext|> inside a line.\n"
    assert rows_of(written(tmp_path, "a.txt", whole)) == [(1, {"text": whole.rstrip("\n")})]
    parts = "\nOne\r\ntwo\n<|endoftext|>\n\n<|endoftext|>\nThree\n"
    assert rows_of(written(tmp_path, "b.txt", parts)) == [(2, {"text": "One\ntwo"}), (7, {"text": "Three"})]
    bad = b"ok\n<|endoftext|>\nfine\nbad \xc3\n<|endoftext|>\nok"
    found = rows_of(written(tmp_path, "c.txt", bad))
    assert found == [(1, {"text": "ok"}), (4, "not UTF-8: byte 0xc3 at column 5"), (6, {"text": "ok"})]


LABELLED = "Sales fell in Zürich .@negative\r\n\nWrite to me@home @ noon .@very_good\nProfit rose@positive\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "iso-8859-1"])
def test_lines_that_end_in_a_label_are_rows_in_both_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(LABELLED.encode(encoding))
    rows = [
        (1, {"text": "Sales fell in Zürich .", "label": "negative"}),
        (3, {"text": "Write to me@home @ noon .", "label": "very_good"}),
        (4, {"text": "Profit rose", "label": "positive"}),
    ]
    assert rows_of(path) == rows
    assert [(row.line, dict(row.value)) for row in read(path, skip=1)] == rows[1:]


def test_a_later_line_without_a_label_is_named(tmp_path):
    lines = [f"Sentence {number} .@neutral" for number in range(30)]
    found = rows_of(written(tmp_path, "a.txt", "\n".join([*lines, "and so on", "last one@neutral"])))
    assert found[30] == (31, "not sentence@label, unlike the first lines of this file")
    assert found[31] == (32, {"text": "last one", "label": "neutral"})


@pytest.mark.parametrize(
    "text",
    [
        "One sentence with@label",
        "A sentence@label\nand one without",
        "name@host\nother@host",
        "write to a@host.org\nand to b@host.org",
        "a sentence@\na sentence@",
        "a sentence@two words\na sentence@1",
    ],
)
def test_other_texts_stay_documents(tmp_path, text):
    assert rows_of(written(tmp_path, "a.txt", text)) == [(1, {"text": text})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_skipping_counts_every_row(tmp_path, name):
    values = [{"text": f"row {i}"} for i in range(7)]
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pa.Table.from_pylist(values), path, row_group_size=3)
    else:
        texts = [f"row {i}" for i in range(7)]
        path.write_text(
            {
                "a.jsonl": "\n\n".join(map(json.dumps, values)) + "\n",
                "a.json": json.dumps(values, indent=2),
                "a.csv": "text\n" + "\n".join(texts),
                "a.txt": "\n<|endoftext|>\n".join(texts),
            }[name]
        )
    whole = rows_of(path)
    assert [value for _, value in whole] == values
    for skip in (0, 1, 3, 6, 7, 9):
        assert rows_of(path, skip) == whole[skip:]


def test_folders_and_globs_are_searched_deeply_in_the_order_of_names(tmp_path):
    names = [
        "b/2.jsonl",
        "b/10.jsonl",
        "a.json",
        "z/deep/er/x.parquet",
        "notes.md",
        "LICENSE",
        ".hidden/a.jsonl",
        "b/.a.csv",
    ]
    random.Random(1).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [file.relative_to(tmp_path).as_posix() for file in expand(str(tmp_path))]
    assert found == ["a.json", "b/10.jsonl", "b/2.jsonl", "z/deep/er/x.parquet"]
    assert [file.name for file in expand(f"{tmp_path}/**/*.jsonl")] == ["10.jsonl", "2.jsonl"]
    assert [file.name for file in expand(f"{tmp_path}/b/1?.jsonl")] == ["10.jsonl"]
    odd = tmp_path / "b" / "[x].jsonl"
    odd.write_text("x")
    assert expand(str(odd)) == [odd]


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"trian\.jsonl: no such file.*did you mean .*/train\.jsonl\?"):
        expand(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match=r"`\.md` cannot be read; known are \.json, \.jsonl, \.csv, \.tsv, \.parquet"):
        expand(str(written(tmp_path, "a.md", "x")))
    with pytest.raises(UserError, match=r"/a: its name has no ending; known are \.json, "):
        expand(str(written(tmp_path, "a", "x")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        expand(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot be read"):
        list(read(tmp_path / "gone.jsonl"))


def test_bad_rows_print_as_file_line_reason():
    assert str(BadRow("a.jsonl", 3, "not UTF-8: byte 0xff")) == "a.jsonl:3: not UTF-8: byte 0xff"


def test_writing_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_atomically(path, "first\r\n")
    assert path.read_bytes() == b"first\r\n"
    assert sha256_file(path) == hashlib.sha256(b"first\r\n").hexdigest()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteError, match=r"a\.json: cannot be written: No space left on device \([\d,]+ bytes"):
        write_atomically(path, "second")
    assert path.read_bytes() == b"first\r\n"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
