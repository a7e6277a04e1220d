"""Reads CSV files with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from zerotune.data import text_files
from zerotune.data.file_options import FileOptions
from zerotune.data.raw_row import BadRow, Row

SEPARATORS = "\t;|,"


def read_csv(path: Path, skip: int, options: FileOptions, usual: str = ",") -> Iterator[Row | BadRow]:
    """usual: the separator unless the options name another one."""
    csv.field_size_limit(2**31 - 1)  # the default refuses fields beyond 128 KiB
    file = str(path)
    problems: dict[int, str] = {}  # line -> what is wrong with its encoding

    def lines() -> Iterator[str]:
        for number, text, problem in text_files.lines(path, options.encoding):
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
            result: Row | BadRow = BadRow(file, line, f"not valid CSV: {_reason(error)}")
        else:
            if not record:
                continue
            bad = next((BadRow(file, n, problems[n]) for n in range(line, reader.line_num + 1) if n in problems), None)
            if header is None:
                header = record
                if reason := _header_reason(header, is_guessed=options.delimiter is None):
                    bad = bad or BadRow(file, line, f"not valid CSV: {reason}")
                if bad:
                    yield bad
                    return
                continue
            result = bad or _row(file, line, header, record)
        yielded += 1
        if yielded > skip:
            yield result


def _header_reason(header: Sequence[str], is_guessed: bool) -> str:
    """What is wrong with a header, or nothing. is_guessed: no option names the separator."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        return f"the header repeats {', '.join(repeated)}"
    seems = next((mark for mark in SEPARATORS if mark in header[0]), "") if is_guessed and len(header) == 1 else ""
    if not seems:
        return ""
    shown = "tab" if seems == "\t" else f"'{seems}'"
    return f"the columns seem to be separated by {shown} ({header[0]!r}): set delimiter: {shown}"


def _reason(error: csv.Error) -> str:
    reason = str(error)
    return "a quote is opened here and never closed" if reason == "unexpected end of data" else reason


def _row(file: str, line: int, header: list[str], record: list[str]) -> Row | BadRow:
    if len(record) != len(header):
        return BadRow(file, line, f"not valid CSV: {len(record)} fields where the header has {len(header)}")
    return Row(file, line, dict(zip(header, record, strict=True)))
