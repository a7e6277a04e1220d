"""Reads text files: documents, `sentence@label` lines, and CoNLL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from zerotune.data import text_files
from zerotune.data.file_options import FileOptions
from zerotune.data.labelled_lines import is_labelled, labelled_lines
from zerotune.data.raw_row import BadRow, Row

DOCUMENT_END = "<|endoftext|>"  # a line with nothing else ends a document


def read_text(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    rows = _labelled(path, options) if is_labelled(path, options.encoding) else _documents(path, options)
    return itertools.islice(rows, skip, None)


def _labelled(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """A row for each line; its sentence is in `text`, so that such a file can be read as a corpus too."""
    for number, sentence, label in labelled_lines(path, options.encoding):
        if label:
            yield Row(str(path), number, {"text": sentence, "label": label})
        else:
            yield BadRow(str(path), number, "not sentence@label, unlike the first lines of this file")


def _documents(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """Documents between lines that hold only <|endoftext|>; without such a line the file is one document."""
    lines: list[str] = []
    bad: BadRow | None = None
    start = 0
    for number, text, problem in itertools.chain(text_files.lines(path, options.encoding), [(0, DOCUMENT_END, "")]):
        if text.strip() == DOCUMENT_END:
            if bad or start:
                yield bad or Row(str(path), start, {"text": "".join(lines).strip("\n")})
            lines, start, bad = [], 0, None
        else:
            start = start or (number if text.strip() else 0)
            bad = bad or (BadRow(str(path), number, problem) if problem else None)
            lines.append(text[:-2] + "\n" if text.endswith("\r\n") else text)


def read_conll(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    return itertools.islice(_sentences(path, options), skip, None)


def _sentences(path: Path, options: FileOptions) -> Iterator[Row | BadRow]:
    """Sentences between blank lines, each with the line it begins on. The first column of a line is the token, the last
    its tag. Columns are separated by tabs, or by spaces in a line without tabs. -DOCSTART- is not a sentence.
    """
    tokens: list[str] = []
    tags: list[str] = []
    bad: BadRow | None = None
    start = 0
    for number, text, problem in itertools.chain(text_files.lines(path, options.encoding), [(0, "", "")]):
        line = text.rstrip("\r\n")
        columns = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if any(map(str.strip, columns)):
            start = start or number
            if problem or len(columns) < 2:
                bad = bad or BadRow(str(path), start, problem or f"not CoNLL: line {number} has a token and no tag")
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif start:
            if bad or tokens != ["-DOCSTART-"]:
                yield bad or Row(str(path), start, {"tokens": tokens, "tags": tags})
            tokens, tags, bad, start = [], [], None, 0
