"""The fields of a row under our names, checked as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerotune.data.raw_row import type_name


class RowError(Exception):
    """Why a row cannot be used. What stands before the first colon is the kind of the reason.

    missing: the row lacks a field that its format requires.
    """

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


SAME_NAMES: Mapping[str, str] = {}


class Fields:
    """The fields of one row under our names, checked as they are asked for; every error is a RowError.

    columns: our field -> the column of the file, where it has another name.
    asks: whether it is enough that the row asks something; else it must hold an answer too.
    """

    def __init__(self, value: Mapping[str, Any], columns: Mapping[str, str] = SAME_NAMES, asks: bool = False) -> None:
        self.value, self.columns, self.asks = value, columns, asks
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether an optional field is there and says something."""
        return says_something(self.value.get(self.columns.get(name, name)))

    def holds(self, name: str) -> bool:
        """Whether the row has the column at all."""
        return self.columns.get(name, name) in self.value

    def unread(self) -> list[str]:
        """The columns that say something and were not asked for."""
        if len(self.read) == len(self.value):
            return []
        return [name for name, value in self.value.items() if name not in self.read and says_something(value)]

    def get(self, name: str) -> Any:
        """A required field, never null."""
        column = self.columns.get(name, name)
        self.read.add(column)
        if column not in self.value:
            raise RowError(f"field `{column}` is missing", missing=True)
        if self.value[column] is None:
            raise RowError(f"field `{column}` is null")
        return self.value[column]

    def text(self, name: str) -> str:
        """A required field that is text and not only white space."""
        return checked_text(self.get(name), f"field `{self.columns.get(name, name)}`")

    def answers(self, name: str) -> tuple[str, ...]:
        """The text of an answer, or of several that are all right; none where there is none and none is needed."""
        if self.asks and not self.has(name):
            return ()
        value, column = self.get(name), self.columns.get(name, name)
        if isinstance(value, str):
            return () if self.asks and value.isspace() else (checked_text(value, f"field `{column}`"),)
        if not isinstance(value, (list, tuple)):
            raise RowError(f"field `{column}` is not text: it is {type_name(value)}")
        if not value:
            raise RowError(f"field `{column}` is an empty list")
        return tuple(checked_text(text, f"{column}[{place}]") for place, text in enumerate(value))


def says_something(value: Any) -> bool:
    """Whether a value is neither null nor empty: tables have an entry for every column, also where nothing is said."""
    return value is not None and value != "" and value != [] and value != {}


def checked_text(value: Any, name: str) -> str:
    """`value` if it is text with something in it that UTF-8 can carry."""
    if not isinstance(value, str):
        raise RowError(f"{name} is not text: it is {type_name(value)}")
    if not value or value.isspace():
        raise RowError(f"{name} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"{name} holds half a surrogate pair: \\u{ord(value[error.start]):04x}") from None
    return value
