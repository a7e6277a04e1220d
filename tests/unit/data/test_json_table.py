"""JSON files that are one object of objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerotune.data.raw_row import Row
from zerotune.data.read_json import json_table
from zerotune.data.rows import local


def test_an_object_of_objects_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('\n{"7": {"text": "one"},\n\n "x": {"text": "two", "id": 5}}\n')
    rows = list(local(str(path)))
    assert [(row.line, row.value) for row in rows if isinstance(row, Row)] == [
        (2, {"id": "7", "text": "one"}),
        (4, {"id": 5, "text": "two"}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": 1}',
        '{"a": {}, "b": 1}',
        '{"a": {}} {"b": {}}',
        '{"a": {},}',
        '[{"a": {}}]',
        "",
        '{"a": {}',
        "[" * 9999,
    ],
)
def test_what_is_no_table(text: str) -> None:
    assert json_table(text) == []


@given(
    st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers() | st.text()), min_size=1),
    st.sampled_from([None, 1]),
)
def test_tables_are_read_whole(rows: dict[str, dict[str, int | str]], indent: int | None) -> None:
    text = json.dumps(rows, indent=indent)
    found = json_table(text)
    assert {key: value for _, key, value in found} == rows
    assert [line for line, _, _ in found] == sorted(line for line, _, _ in found)
