"""Samples the rows of a source, and reports rows that cannot be used.

Shape suffix: n rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.sources import NumberedRow, Source
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.data.fields import RowError
from zerotune.data.formats import FORMATS
from zerotune.data.raw_row import BadRow, column_names

SHOWN_BAD_ROWS, SHOWN_COLUMNS = 10, 50
DRAWN_AT_ONCE = 4096


def draw(seed: int, stream: str, index_n: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A random 64-bit number for each index, from the seed, the stream's name and the index (SplitMix64)."""
    base = int.from_bytes(hashlib.blake2b(f"{seed} {stream}".encode(), digest_size=8).digest(), "big")
    with np.errstate(over="ignore"):
        z_n = np.uint64(base) + (index_n.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z_n = (z_n ^ (z_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_n = (z_n ^ (z_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_n: NDArray[np.uint64] = z_n ^ (z_n >> np.uint64(31))
    return mixed_n


def sampled(
    rows: Iterator[NumberedRow], share: float, seed: int, stream: str, turn: float = 0.0
) -> Iterator[NumberedRow]:
    """A random `share` of the rows; whether a row is drawn depends only on the seed and its number.

    turn: selects other rows; draws with `turn` = 0, 1, 2, ... times the share do not overlap until all rows are drawn.
    """
    if share >= 1:
        yield from rows
        return
    base, unit_n = -1, np.empty(0)
    for row in rows:
        block = row.number // DRAWN_AT_ONCE
        if block != base:
            base = block
            start = block * DRAWN_AT_ONCE
            drawn_n = draw(seed, stream, np.arange(start, start + DRAWN_AT_ONCE))
            unit_n = (drawn_n / 2.0**64 + turn) % 1.0
        if unit_n[row.number % DRAWN_AT_ONCE] < share:
            yield row


def joined(known: Sequence[str], more: Iterable[object]) -> list[str]:
    """The columns of several rows, each once, at most SHOWN_COLUMNS."""
    return list(dict.fromkeys([*known, *map(str, more)]))[:SHOWN_COLUMNS]


@dataclass
class Problems:
    """The rows of one source that cannot be used. first: the first few, with the number of their file. is_partial:
    whether reading ended before the last row, since these are enough to refuse a run.
    """

    rows: int = 0  # all rows that were read
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: list[tuple[int, BadRow]] = field(default_factory=list)
    missing: int = 0  # rows without a field of their format
    columns: list[str] = field(default_factory=list)  # of the first such rows
    is_partial: bool = False

    def add(self, file: int, bad: BadRow) -> None:
        self.count += 1
        self.kinds[bad.reason.split(":")[0]] += 1
        if len(self.first) < SHOWN_BAD_ROWS:
            self.first.append((file, bad))

    def lacks(self, value: Mapping[str, Any], error: RowError) -> None:
        """Count a row if it lacks a field, and keep its columns."""
        if error.missing:
            self.missing += 1
            self.kinds[str(error)] += 1
            self.columns = joined(self.columns, value)

    def listed(self, names: Sequence[str]) -> list[str]:
        """The first few as `file:line: reason`."""
        return [str(replace(bad, file=names[file])) for file, bad in self.first]

    def to_json(self) -> dict[str, Any]:
        first = [(file, bad.line, bad.reason, bad.number) for file, bad in self.first]
        return {"rows": self.rows, "count": self.count, "kinds": dict(self.kinds), "first": first}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Problems:
        first = [(int(file), BadRow("", *entry)) for file, *entry in value["first"]]
        return cls(value["rows"], value["count"], Counter(value["kinds"]), first)


def check_columns(source: Source, problems: Problems, which: str = "") -> None:
    """Raise one error if every row lacks a column.

    which: a word before "rows": `first `, or empty.

    Raises:
        UserError: No row that was read has the fields of the format.
    """
    if not problems.rows or problems.missing < problems.rows:
        return
    needed = FORMATS[source.config.format].needed
    raise UserError(
        f"{source.key} ({source.config.path}): format `{source.config.format}` needs {needed};"
        f" {' or '.join(problems.kinds)} in every row ({which}{counted(problems.rows, 'row')})."
        f" Its columns are: {column_names(problems.columns) or '(none)'}."
        f" Map them with {source.key}.columns, or choose another format"
    )


def bad_rows_error(found: Sequence[tuple[Source, Problems]], which: str = "") -> UserError:
    """One error for the bad rows of all sources. which: words before "rows": `the first `, or empty."""
    total = sum(problems.count for _, problems in found)
    rows = sum(problems.rows for _, problems in found)
    listed = [line for source, problems in found for line in problems.listed(source.names)][:SHOWN_BAD_ROWS]
    if any(problems.is_partial for _, problems in found):
        which = "the first "
    if total > len(listed):
        listed.append(f"and {total - len(listed):,} more")
    return UserError(
        f"{total:,} of {which}{counted(rows, 'row')} cannot be used:\n  "
        + "\n  ".join(listed)
        + "\nFix them, or skip them with data.on_bad_row: skip"
    )


def skipped_line(problems: Problems, names: Sequence[str]) -> str:
    """How many rows were skipped, and why."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in problems.kinds.most_common())
    first = problems.listed(names)[0]
    return f"{problems.count:,} of {counted(problems.rows, 'row')} skipped: {kinds}; the first is {first}"
