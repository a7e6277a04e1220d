"""The tokens of one split: rows of token tables, chosen but not copied.

Shape suffixes: n rows of the split, t tokens of one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.store import TokenTable

IGNORED = -100


@dataclass(frozen=True)
class Part:
    """Rows of one table. names: of its source's files. chosen: numbers of the rows that are used, or None for all."""

    table: TokenTable
    source: int
    names: Sequence[str]
    chosen: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.table) if self.chosen is None else len(self.chosen)

    def column(self, name: str) -> NDArray[Any]:
        """One value of every row that is used."""
        values = self.table.column(name)
        return values if self.chosen is None else values[self.chosen]

    def where(self, row: int) -> int:
        """Number in the table of a row of this part."""
        return row if self.chosen is None else int(self.chosen[row])

    def only(self, is_kept: NDArray[np.bool_]) -> Part:
        """The rows of this part that are kept."""
        rows = np.arange(len(self)) if self.chosen is None else self.chosen
        return self if is_kept.all() else Part(self.table, self.source, self.names, rows[is_kept])


class Encoded:
    """Tokens of one split, memory-mapped.

    lengths_n: tokens of each row. learned_n: how many of them are learned. sources_n: number of the row's source in the
    recipe. digest: sha256 that tells this content, in this order, from any other.
    notes: what a person should know about these rows (a window of a stream; else the corpus says it).
    """

    def __init__(self, parts: Sequence[Part], notes: Sequence[str] = ()) -> None:
        self.parts, self.notes = tuple(parts), tuple(notes)
        self.starts = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)
        self.lengths_n: NDArray[np.int32] = self._joined("lengths_n", np.int32)
        self.learned_n: NDArray[np.int32] = self._joined("learned_n", np.int32)
        self.sources_n: NDArray[np.int16] = np.repeat(
            np.array([part.source for part in self.parts], np.int16), [len(part) for part in self.parts]
        )
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.source} {part.table.manifest['digest']} ".encode())
            digest.update(b"all" if part.chosen is None else part.chosen.tobytes())
        self.digest = digest.hexdigest()

    def _joined(self, name: str, kind: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, kind), *(part.column(name) for part in self.parts)]).astype(kind, copy=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, row: int) -> tuple[Part, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        part = self.parts[number]
        return part, part.where(row - int(self.starts[number]))

    def tokens(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(input_ids_t, labels_t) of a row: labels unshifted, -100 where nothing is learned, as at the first token."""
        part, place = self._find(row)
        ids_t, learned_t = part.table.tokens(place)
        return ids_t, np.where(learned_t, ids_t, np.int32(IGNORED))

    def row_id(self, row: int) -> str:
        """`file:line` where a row comes from."""
        part, place = self._find(row)
        file, line = part.table.place(place)
        return f"{part.names[file]}:{line}"
