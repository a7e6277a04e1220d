"""Rows of a user's files for evaluation, read as training reads them. A column `subset` names the part of the data that
a row belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.data.conversations import Message, answered_turns
from zerotune.data.fields import Fields, RowError
from zerotune.data.file_options import DEFAULT, FileOptions, RowFilter
from zerotune.data.files import BadRow, Row, expand, read
from zerotune.data.formats import parts_left_out, read_recognised
from zerotune.data.raw_row import column_names

SHOWN_BAD_ROWS = 10
CURE = re.compile(r"set (delimiter|encoding): ")
UNASKED = "first turns of the assistant, which answer nothing"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """One row. id: file:line. Either `text` or `messages` is set; an answer, if any, is the last message.

    tools: JSON schemas of functions. subset: the part of the data it belongs to (factual, reasoning). also_right:
    further answers as good as the last message. left_out: parts of the row that are not used.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: list[Any] | None = None
    subset: str = ""
    also_right: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the last message is the assistant's."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    @cached_property
    def turns(self) -> list[int]:
        """See `answered_turns`."""
        return answered_turns(self.messages)


def refused(row: Row, error: RowError) -> BadRow:
    """The row as a bad one; where it lacks a column, with those that it has."""
    columns = f"; its columns: {column_names(row.value)}" if error.missing else ""
    return row.refused(f"{error}{columns}")


def with_options(bad: BadRow) -> BadRow:
    """The row with the cures of its reason as options of the command line; readers write them as keys of a recipe."""
    return replace(bad, reason=CURE.sub(r"set --\1 ", bad.reason))


def load(rows: Iterable[Row | BadRow], make: Callable[[Row], Item]) -> list[Item]:
    """The items that `make` forms of the rows.

    Raises UserError with the first ten bad rows as file:line: reason; a row is never left out silently.
    """
    items: list[Item] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(with_options(row))
            continue
        try:
            items.append(make(row))
        except RowError as error:
            bad.append(refused(row, error))
    if bad:
        lines = [f"{counted(len(bad), 'row')} cannot be evaluated:", *map(str, bad[:SHOWN_BAD_ROWS])]
        lines += [f"(and {len(bad) - SHOWN_BAD_ROWS} more)"] if len(bad) > SHOWN_BAD_ROWS else []
        raise UserError("\n".join(lines))
    return items


def local(*paths: str, options: FileOptions = DEFAULT) -> Iterator[Row | BadRow]:
    """The rows of files, folders and globs that the options mean."""
    chosen = RowFilter(options.filter)
    for file in expand(*paths):
        for row in read(file, 0, options):
            if isinstance(row, BadRow):
                yield row
            elif chosen.takes(row.value):
                yield replace(row, value=options.renamed(row.value)) if options.columns else row
    chosen.require_rows()


def examples(check: Callable[[Example], Item], asks: bool = False) -> Callable[[Row], Item]:
    """A task's `load` for rows that are texts or conversations. asks: see `Fields`."""

    return lambda row: check(example(row, asks))


def example(row: Row, asks: bool = False) -> Example:
    """The row as a text or a conversation. Raises RowError."""
    fields = Fields(row.value, asks=asks)
    found = read_recognised(fields)
    subset = _subset(fields)
    left = parts_left_out(fields, found)
    if isinstance(found, str):
        return Example(row.place, text=found, subset=subset, left_out=left)
    left += (UNASKED,) if found.messages[0]["role"] == "assistant" else ()
    return Example(row.place, None, tuple(found.messages), found.tools, subset, found.also_right, left)


def _subset(fields: Fields) -> str:
    if not fields.has("subset"):
        return ""
    value = fields.get("subset")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else fields.text("subset")
