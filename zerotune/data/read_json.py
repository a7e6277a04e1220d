"""Reads JSON Lines, and JSON: an array of objects, objects one after another, or one object of objects."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerotune.data import text_files
from zerotune.data.file_options import FileOptions
from zerotune.data.raw_row import BadRow, Row, type_name

DECODE = json.JSONDecoder().raw_decode
SPACE = re.compile(r"[ \t\r\n]*")
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" puts in place of a byte that is not UTF-8


def read_jsonl(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    file = str(path)
    filled = (line for line in text_files.lines(path, options.encoding) if line[1].strip())
    for number, text, problem in itertools.islice(filled, skip, None):
        yield BadRow(file, number, problem) if problem else _object(file, number, text)


def _object(file: str, line: int, text: str) -> Row | BadRow:
    text = text.rstrip()
    try:
        value, end = DECODE(text, len(text) - len(text.lstrip(" \t\r\n")))  # faster than json.loads
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, _skip_space(text, end))
    except (ValueError, RecursionError) as error:
        return BadRow(file, line, _reason(error, text))
    return _row(file, line, value)


def _row(file: str, line: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(file, line, value)
    return BadRow(file, line, f"not an object: a row must be {{...}}, this is {type_name(value)}")


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"not valid JSON: cut off ({error.msg})"
    return f"not valid JSON: {error.msg} (column {error.colno})"


def read_json(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    file = str(path)
    text, problem = text_files.whole(path, options.encoding)
    if problem and not text:
        return iter([BadRow(file, 1, problem)])
    rows: Iterable[tuple[int, Row | BadRow]] = _elements(file, text, problem)
    if table := [] if problem else json_table(text):
        rows = enumerate((Row(file, line, {"id": key, **value}) for line, key, value in table), start=1)
    return itertools.islice(_numbered(rows), skip, None)


def _numbered(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Row | BadRow]:
    """The rows of (number, row), with the number in those that share a line with others."""
    for _, group in itertools.groupby(rows, key=lambda entry: entry[1].line):
        together = list(group)
        yield from (row if len(together) == 1 else replace(row, number=number) for number, row in together)


def _elements(file: str, text: str, problem: str) -> Iterator[tuple[int, Row | BadRow]]:
    """Number and row of the elements of an array, or of objects one after another; each has the line it begins on.

    problem: of the text's encoding.
    """
    position = _skip_space(text, 0)
    in_array = text.startswith("[", position)
    position = _skip_space(text, position + in_array)
    if in_array and text.startswith("]", position):
        return
    line, counted, number = 1, 0, 0
    while position < len(text):
        number += 1
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = DECODE(text, position)
        except (ValueError, RecursionError) as error:
            position = _next_start(text, counted)
            if position == len(text):
                broken_line = line + text.count("\n", counted, getattr(error, "pos", counted))
                yield number, BadRow(file, broken_line, f"{_reason(error, text)}; the rest of the file is not read")
            else:
                yield number, BadRow(file, line, _reason(error, text))
            continue
        if problem and (byte := ESCAPED_BYTE.search(text, position, end)):
            kind, _, hint = problem.partition(":")
            hint = hint[hint.index(" (") :] if " (" in hint else ""
            byte_line = line + text.count("\n", position, byte.start())
            yield number, BadRow(file, byte_line, f"{kind}: byte 0x{ord(byte[0]) - 0xDC00:02x}{hint}")
            problem = kind  # the hint is given once
        else:
            yield number, _row(file, line, value)
        position, missing = _next_element(text, end) if in_array else (_skip_space(text, end), "")
        if missing:
            yield number, BadRow(file, line + text.count("\n", counted, end), f"not valid JSON: {missing}")


def _next_element(text: str, end: int) -> tuple[int, str]:
    """Where the next element of an array begins (if there is none, the end of the text), and what is missing before."""
    position = _skip_space(text, end)
    if text.startswith("]", position):
        return len(text), ""
    if not text.startswith(",", position):
        return position, "a comma is missing" if position < len(text) else "cut off (no closing ])"
    position = _skip_space(text, position + 1)
    return position, "" if position < len(text) else "cut off (nothing after the last comma)"


def _next_start(text: str, position: int) -> int:
    """Where to resume after a broken value at `position`: at a line that begins like its line; else the end."""
    line_start = text.rfind("\n", 0, position) + 1
    indent = text[line_start:position]
    if indent.strip(" \t[,"):
        return len(text)
    found = text.find("\n" + indent.lstrip("[,") + "{", position)
    return len(text) if found < 0 else text.index("{", found)


def json_table(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(line on which it begins, key, object) of each entry of an object of objects (ScienceQA); else empty."""
    start = _skip_space(text, 0)
    try:
        whole = json.loads(text) if text.startswith("{", start) else None
    except (ValueError, RecursionError):
        return []
    if not isinstance(whole, dict) or not whole or not all(isinstance(value, dict) for value in whole.values()):
        return []
    entries: list[tuple[int, str, dict[str, Any]]] = []
    line, counted, end = 1, 0, start
    while not text.startswith("}", end):  # the text is valid: only the places of its parts are looked for
        key, end = DECODE(text, _skip_space(text, end + 1))
        start = _skip_space(text, _skip_space(text, end) + 1)
        line, counted = line + text.count("\n", counted, start), start
        value, end = DECODE(text, start)
        entries.append((line, key, value))
        end = _skip_space(text, end)
    return entries


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position
