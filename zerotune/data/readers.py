"""The readers behind `zerotune.data.files.read`, one for each kind of file: rows with the line they stand on.

Text must be UTF-8 where no other encoding is said (a byte order mark is taken off), that of `sentence@label` lines may
be ISO-8859-1. A row that cannot be read is yielded with its reason, never raised.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zerotune.common.errors import UserError
from zerotune.data import text_files
from zerotune.data.file_options import DEFAULT, FileOptions
from zerotune.data.json_table import json_table
from zerotune.data.labelled_lines import is_labelled, labelled_lines
from zerotune.data.saved_datasets import classes, named

SEPARATORS = "\t;|,"  # what may stand between columns
DOCUMENT_END = "<|endoftext|>"  # a line with nothing else ends a document of a text file
DECODE = json.JSONDecoder().raw_decode
SPACE = re.compile(r"[ \t\r\n]*")
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" leaves where a byte is not UTF-8


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used. What stands before the first colon of the reason is its kind. number: see `Row`."""

    file: str
    line: int
    reason: str
    number: int = 0

    @property
    def place(self) -> str:
        """See `Row`."""
        return place_of(self.file, self.line, self.number)

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One row as read. line counts from 1; in a Parquet file it is the number of the row. number: of the row in its
    file, from 1, where others begin on the same line; else 0.
    """

    file: str
    line: int
    value: Mapping[str, Any]
    number: int = 0

    @property
    def place(self) -> str:
        """file:line, and where that is not enough the row's number; unlike any other row's."""
        return place_of(self.file, self.line, self.number)

    def refused(self, reason: str) -> BadRow:
        """That this row cannot be used."""
        return BadRow(self.file, self.line, reason, self.number)


def place_of(file: str, line: int, number: int) -> str:
    """See `Row`."""
    return f"{file}:{line}, row {number}" if number else f"{file}:{line}"


def _lines(path: Path, options: FileOptions) -> Iterator[tuple[int, str, BadRow | None]]:
    """Number, text and problem of each line."""
    for number, text, problem in text_files.lines(path, options.encoding):
        yield number, text, BadRow(str(path), number, problem) if problem else None


def _read_jsonl(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    filled = (entry for entry in _lines(path, options) if entry[1].strip())
    for number, text, problem in itertools.islice(filled, skip, None):
        yield problem or _object(str(path), number, text)


def _object(file: str, line: int, text: str) -> Row | BadRow:
    text = text.rstrip()
    try:
        value, end = DECODE(text, len(text) - len(text.lstrip(" \t\r\n")))  # faster than json.loads
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, _skip_space(text, end))
    except (ValueError, RecursionError) as error:
        return BadRow(file, line, _json_reason(error, text))
    return _row(file, line, value)


def _row(file: str, line: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(file, line, value)
    return BadRow(file, line, f"not an object: a row must be {{...}}, this is {type_name(value)}")


def type_name(value: Any) -> str:
    """A value's type in the words of JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _json_reason(error: Exception, text: str) -> str:
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"not valid JSON: cut off ({error.msg})"
    return f"not valid JSON: {error.msg} (column {error.colno})"


def _read_json(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    text, problem = text_files.whole(path, options.encoding)
    if problem and not text:
        return iter([BadRow(str(path), 1, problem)])
    return itertools.islice(_numbered(_walk_json(str(path), text, problem)), skip, None)


def _numbered(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Row | BadRow]:
    """The rows, those that share a line with others with their numbers. rows: number and row."""
    for _, group in itertools.groupby(rows, key=lambda entry: entry[1].line):
        together = list(group)
        yield from (row if len(together) == 1 else replace(row, number=number) for number, row in together)


def _walk_json(file: str, text: str, problem: str) -> Iterator[tuple[int, Row | BadRow]]:
    """The elements of an array, or objects one after another, with their numbers; each with the line it begins on.

    One object that holds nothing but objects is a table: its keys become the rows' `id` where they have none.
    """
    table = [] if problem else json_table(text)
    if table:
        entries = (Row(file, line, {"id": key, **value}) for line, key, value in table)
        yield from enumerate(entries, start=1)
        return
    position = _skip_space(text, 0)
    in_array = text[position : position + 1] == "["
    position = _skip_space(text, position + in_array)
    if in_array and text[position : position + 1] == "]":
        return
    line, counted, number = 1, 0, 0
    while position < len(text):
        number += 1
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = DECODE(text, position)
        except (ValueError, RecursionError) as error:
            broken_line = line + text.count("\n", position, getattr(error, "pos", position))
            position = _next_start(text, position)
            if position < len(text):
                yield number, BadRow(file, line, _json_reason(error, text))
            else:
                reason = _json_reason(error, text) + "; the rest of the file is not read"
                yield number, BadRow(file, broken_line, reason)
                return
            continue
        escaped = ESCAPED_BYTE.search(text, position, end) if problem else None
        if escaped:
            escaped_line = line + text.count("\n", position, escaped.start())
            kind, _, hint = problem.partition(":")
            hint = hint[hint.index(" (") :] if " (" in hint else ""
            yield number, BadRow(file, escaped_line, f"{kind}: byte 0x{ord(escaped.group()) - 0xDC00:02x}{hint}")
            problem = kind
        else:
            yield number, _row(file, line, value)
        position = _skip_space(text, end)
        if in_array:
            mark = text[position : position + 1]
            if mark == "]":
                return
            if mark != ",":
                last_line = line + text.count("\n", counted, end)
                reason = "a comma is missing" if mark else "cut off (no closing ])"
                yield number, BadRow(file, last_line, f"not valid JSON: {reason}")
            position = _skip_space(text, position + (mark == ","))
            if mark == "," and position == len(text):
                yield number, BadRow(file, line, "not valid JSON: cut off (nothing after the last comma)")


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def _next_start(text: str, position: int) -> int:
    """Where reading can go on after the broken value at `position`: at a line that opens an object as its line did."""
    line_start = text.rfind("\n", 0, position) + 1
    indent = text[line_start:position]
    if indent.strip(" \t[,"):
        return len(text)
    found = text.find("\n" + indent.lstrip("[,") + "{", position)
    return len(text) if found < 0 else text.index("{", found)


def _read_csv(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    return _separated(path, skip, options, ",")


def _read_tsv(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    return _separated(path, skip, options, "\t")


def _separated(path: Path, skip: int, options: FileOptions, usual: str) -> Iterator[Row | BadRow]:
    csv.field_size_limit(2**31 - 1)  # the default refuses fields beyond 128 KiB
    problems: dict[int, BadRow] = {}

    def lines() -> Iterator[str]:
        for number, text, problem in _lines(path, options):
            if problem:
                problems[number] = problem
            yield text

    reader = csv.reader(lines(), delimiter=options.separator or usual, strict=True)
    header: list[str] | None = None
    yielded = 0
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            result: Row | BadRow = BadRow(str(path), line, f"not valid CSV: {_csv_reason(error)}")
        else:
            if not record:
                continue
            problem = next((problems[n] for n in range(line, reader.line_num + 1) if n in problems), None)
            if header is None:
                header = record
                if reason := _header_reason(header, is_guessed=options.delimiter is None):
                    problem = problem or BadRow(str(path), line, f"not valid CSV: {reason}")
                if problem:
                    yield problem
                    return
                continue
            result = problem or _csv_row(str(path), line, header, record)
        yielded += 1
        if yielded > skip:
            yield result


def _header_reason(header: Sequence[str], is_guessed: bool) -> str:
    """What is wrong with a header, or nothing. is_guessed: nobody has said what stands between its columns."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        return f"the header repeats {', '.join(repeated)}"
    seems = next((mark for mark in SEPARATORS if mark in header[0]), "") if is_guessed and len(header) == 1 else ""
    if not seems:
        return ""
    shown = "tab" if seems == "\t" else f"'{seems}'"
    return f"the columns seem to be parted by {shown} ({header[0]!r}): set delimiter: {shown}"


def _csv_reason(error: csv.Error) -> str:
    reason = str(error)
    return "a quote is opened here and never closed" if reason == "unexpected end of data" else reason


def _csv_row(file: str, line: int, header: list[str], record: list[str]) -> Row | BadRow:
    if len(record) != len(header):
        return BadRow(file, line, f"not valid CSV: {len(record)} fields where the header has {len(header)}")
    return Row(file, line, dict(zip(header, record, strict=True)))


def _read_parquet(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        yield BadRow(str(path), 1, f"not a Parquet file: {error}")
        return
    with table:
        line = 0
        for group in range(table.num_row_groups):
            if line + table.metadata.row_group(group).num_rows <= skip:
                line += table.metadata.row_group(group).num_rows
                continue
            for batch in table.iter_batches(batch_size=1024, row_groups=[group]):
                for offset in range(max(0, skip - line), len(batch)):
                    yield _parquet_row(str(path), line + offset + 1, batch, offset)
                line += len(batch)


def _read_arrow(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    """Of a data set that `datasets` saved; classes by their names."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            table = pyarrow.ipc.open_stream(source)
            features = classes(table.schema)
            line = 0
            for batch in table:
                for offset in range(max(0, skip - line), len(batch)):
                    row = _parquet_row(str(path), line + offset + 1, batch, offset)
                    if isinstance(row, Row):
                        row = replace(row, value={name: named(v, features.get(name)) for name, v in row.value.items()})
                    yield row
                line += len(batch)
    except pyarrow.ArrowInvalid as error:
        yield BadRow(str(path), 1, f"not an Arrow file: {error}")


def _parquet_row(file: str, line: int, batch: Any, offset: int) -> Row | BadRow:
    try:
        values = {name: batch.column(name)[offset].as_py(maps_as_pydicts="strict") for name in batch.schema.names}
        return Row(file, line, {name: without_nulls(value) for name, value in values.items()})
    except KeyError as error:
        return BadRow(file, line, f"a map holds a key twice: {error}")
    except UnicodeDecodeError as error:
        return BadRow(file, line, f"not UTF-8: byte 0x{error.object[error.start]:02x}")


def without_nulls(value: Any) -> Any:
    """A value of a table without the keys that are null, at any depth: every object of a table has every key that one
    of them has, so that nobody can tell a null that was meant from one that the table's schema made.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _read_text(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    rows = _labelled(path, options) if is_labelled(path, options.encoding) else _documents(path, options)
    return itertools.islice(rows, skip, None)


def _labelled(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """A row for each line; its sentence is its `text`, so that corpora may be read from such a file too."""
    for number, sentence, label in labelled_lines(path, options.encoding):
        if label:
            yield Row(str(path), number, {"text": sentence, "label": label})
        else:
            reason = "not sentence@label, which the lines at the beginning of this file are"
            yield BadRow(str(path), number, reason)


def _documents(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """Documents between lines that hold only <|endoftext|>; without such a line the file is one document."""
    lines: list[str] = []
    problem: BadRow | None = None
    start = 0
    for number, text, bad in itertools.chain(_lines(path, options), [(0, DOCUMENT_END, None)]):
        if text.strip() == DOCUMENT_END:
            if problem or start:
                yield problem or Row(str(path), start, {"text": "".join(lines).strip("\n")})
            lines, start, problem = [], 0, None
        else:
            start = start or (number if text.strip() else 0)
            problem = problem or bad
            lines.append(text[:-2] + "\n" if text.endswith("\r\n") else text)


def _read_conll(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    return itertools.islice(_sentences(path, options), skip, None)


def _sentences(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """Sentences between blank lines, each with the line it begins on; of a line's columns the first is the token and
    the last its tag. Columns stand between tabs, or between spaces in a line without tabs. -DOCSTART- is no sentence.
    """
    tokens: list[str] = []
    tags: list[str] = []
    problem: BadRow | None = None
    start = 0
    for number, text, bad in itertools.chain(_lines(path, options), [(0, "", None)]):
        line = text.rstrip("\r\n")
        columns = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if any(map(str.strip, columns)):
            start = start or number
            reason = bad.reason if bad else f"not CoNLL: line {number} has a token and no tag"
            if bad or len(columns) < 2:
                problem = problem or BadRow(str(path), start, reason)
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif start:
            if problem or tokens != ["-DOCSTART-"]:
                yield problem or Row(str(path), start, {"tokens": tokens, "tags": tags})
            tokens, tags, problem, start = [], [], None, 0


READERS: Mapping[str, Callable[[Path, int, FileOptions], Iterator[Row | BadRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_text,
    ".conll": _read_conll,
    ".iob": _read_conll,
    ".iob2": _read_conll,
}
BINARY = (".parquet", ".arrow")  # no text, and no other compression around it


def reader_of(path: Path) -> Callable[[Path, int, FileOptions], Iterator[Row | BadRow]] | None:
    """What reads a file of this name; None where nothing does."""
    kind = text_files.kind_of(path)
    return None if kind in BINARY and path.suffix.lower() != kind else READERS.get(kind)


def read(path: Path, skip: int = 0, options: FileOptions = DEFAULT) -> Iterator[Row | BadRow]:
    """The rows of one file in order, read as they are asked for, without the first `skip` (of both kinds). The filter
    of the options is not applied.

    JSON arrays are held in memory whole, and so is one document of a text file.

    Raises:
        UserError: The file cannot be opened, or uncompressed.
    """
    reader = reader_of(path)
    assert reader, path
    try:
        yield from reader(path, skip, options)
    except text_files.BROKEN as error:
        raise text_files.broken(path, error) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
