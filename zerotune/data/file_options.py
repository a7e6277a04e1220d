"""What a user says about files that they do not say themselves: how columns are parted, how text is written, which rows
are meant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.common.suggest import nearest
from zerotune.data.raw_row import column_names

TAB = ("\t", "tab", "\\t")
SHOWN_COLUMNS = 50
SHOWN_VALUES, KEPT_VALUES = 10, 1000  # values of a column, in a message


@dataclass(frozen=True)
class FileOptions:
    """delimiter: what stands between the columns of CSV files; None: what their name says. encoding: of text files;
    None: UTF-8, or UTF-16 with its mark. filter: column -> its values in the rows that are meant. columns: our field ->
    the column that holds it, for readers that name their fields themselves (evaluation).
    """

    delimiter: str | None = None
    encoding: str | None = None
    filter: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def separator(self) -> str | None:
        """The delimiter, tab under any of its names."""
        return "\t" if self.delimiter in TAB else self.delimiter

    def renamed(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row's columns under our names."""
        if not self.columns:
            return value
        replaced = {*self.columns, *self.columns.values()}
        others = {name: inner for name, inner in value.items() if name not in replaced}
        return others | {ours: value[theirs] for ours, theirs in self.columns.items() if theirs in value}

    def problems(self) -> Iterator[tuple[str, str]]:
        """(option, what is wrong with it)."""
        separator = self.separator
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            yield "delimiter", f"must be one character, or tab, not {self.delimiter!r}"
        if self.encoding is not None and not _is_encoding(self.encoding):
            yield "encoding", f"there is no {self.encoding!r}; for example utf-8, gb18030, big5, utf-16, cp1252"

    def identity(self) -> dict[str, Any]:
        """What is not as by default; equal ones read the same rows."""
        given = {"delimiter": self.separator, "encoding": self.encoding, "filter": dict(self.filter)}
        return {name: value for name, value in given.items() if value}


DEFAULT = FileOptions()


def _is_encoding(name: str) -> bool:
    try:
        b" ".decode(name)
    except LookupError:  # unknown, or none of text (hex)
        return False
    except UnicodeDecodeError:  # one of two bytes a character
        return True
    return True


class RowFilter:
    """Which rows have the wanted values, and what there was where none has. A column that is not there is null."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.wanted = {column: _texts(values) for column, values in wanted.items()}
        self.seen: dict[str, dict[str, None]] = {column: {} for column in wanted}
        self.columns: dict[str, None] = {}
        self.rows = self.kept = 0

    def takes(self, value: Mapping[str, Any]) -> bool:
        """Whether the row is meant."""
        if not self.wanted:
            return True
        self.rows += 1
        if not self.kept:
            self._look(value)
        taken = all(_text(value.get(column)) in texts for column, texts in self.wanted.items())
        self.kept += taken
        return taken

    def _look(self, value: Mapping[str, Any]) -> None:
        if len(self.columns) < KEPT_VALUES:
            self.columns |= dict.fromkeys(map(str, value))
        for column, seen in self.seen.items():
            if column in value and len(seen) < KEPT_VALUES:
                seen[_text(value[column])] = None

    def require_columns(self) -> None:
        """Raises UserError where rows of a table were read, none was meant, and they have not all the columns."""
        missing = [column for column, seen in self.seen.items() if not seen]
        if self.rows and not self.kept and missing:
            raise UserError(f"there is no column `{missing[0]}`; the columns are {column_names(self.columns)}")

    def require_rows(self) -> None:
        """Raises UserError where rows were read and none was meant."""
        if not self.rows or self.kept:
            return
        said = []
        for column, seen in self.seen.items():
            if not seen:
                said.append(f"there is no column `{column}`; the columns are {column_names(self.columns)}")
            else:
                more = ", ..." if len(seen) > SHOWN_VALUES else ""
                said.append(f"`{column}` holds {', '.join(list(seen)[:SHOWN_VALUES])}{more}")
        wanted = ", ".join(f"{column}: {' or '.join(texts)}" for column, texts in self.wanted.items())
        raise UserError(f"filter: no row has {wanted} ({counted(self.rows, 'row')} read): {'; '.join(said)}")


def unmapped(columns: Mapping[str, str], seen: Collection[str]) -> Iterator[tuple[str, str]]:
    """(our field, what is wrong) where `columns` (our field -> column) names a column that no row has.

    seen: the columns of the rows.
    """
    for field_name, column in columns.items():
        if seen and column not in seen:
            shown = column_names(list(seen)[:SHOWN_COLUMNS])
            meant = f"; did you mean `{near}`?" if (near := nearest(column, seen)) else "."
            yield field_name, f"there is no column `{column}`{meant} The columns are {shown}"


def _texts(values: Any) -> Sequence[str]:
    return [_text(value) for value in (values if isinstance(values, list | tuple) else [values])]


def _text(value: Any) -> str:
    """A value as text, so that 1 and true of JSON are those of CSV."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str) and value in ("True", "False"):
        return value.lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
