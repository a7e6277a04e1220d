"""A row as it stands in a file, and one that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. The part of the reason before the first colon is its kind. number: see `Row`."""

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
    """A row as read.

    line: counts from 1; in a Parquet file the number of the row. number: of the row in its file, from 1, if other rows
    begin on the same line; else 0.
    """

    file: str
    line: int
    value: Mapping[str, Any]
    number: int = 0

    @property
    def place(self) -> str:
        """A unique place: file:line, and the row's number if several begin on that line."""
        return place_of(self.file, self.line, self.number)

    def refused(self, reason: str) -> BadRow:
        """This row as one that cannot be used."""
        return BadRow(self.file, self.line, reason, self.number)


def place_of(file: str, line: int, number: int) -> str:
    """See `Row`."""
    return f"{file}:{line}, row {number}" if number else f"{file}:{line}"


def type_name(value: Any) -> str:
    """A value's type in the terms of JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def column_names(columns: Iterable[object]) -> str:
    """The names of columns for a message; blanks around a name are made visible, and columns without one."""
    return ", ".join(column_name(str(name)) for name in columns)


def column_name(name: str) -> str:
    """See `column_names`."""
    return "(unnamed)" if not name else name if name == name.strip() else f"`{name}`"
