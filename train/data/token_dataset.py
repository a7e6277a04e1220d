"""The tokens of one split: selected rows of token tables, without copying.

Shape suffixes: n rows of the split, t tokens of one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.document import IGNORED, Document
from train.data.label_encoder import LabelSpec
from train.data.token_table import TokenTable
from zerotune.common.errors import UserError
from zerotune.data.raw_row import place_of


@dataclass(frozen=True)
class Part:
    """Rows of one table. names: of its source's files. chosen: numbers of the selected rows, or None for all."""

    table: TokenTable
    source: int
    names: Sequence[str]
    chosen: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.table) if self.chosen is None else len(self.chosen)

    def column(self, name: str) -> NDArray[Any]:
        """A value of every selected row."""
        values = self.table.column(name)
        return values if self.chosen is None else values[self.chosen]

    def where(self, row: int) -> int:
        """The table's number of a row of this part."""
        return row if self.chosen is None else int(self.chosen[row])

    def place(self, number: int) -> str:
        """`file:line` of a row; see `zerotune.data.raw_row.Row`. number: of the row in the table."""
        file, line, sharing = self.table.place(number)
        return place_of(self.names[file], line, sharing)

    def learned_values(self, number_token: int) -> NDArray[np.float64]:
        """The values of the numbers that are learned."""
        numbers = self.table.learned_values(number_token)
        if self.chosen is None:
            return np.concatenate([np.empty(0), *(values for _, values in numbers)])
        is_chosen_n = np.isin(np.arange(len(self.table)), self.chosen)
        return np.concatenate([np.empty(0), *(values[is_chosen_n[row_g]] for row_g, values in numbers)])

    def only(self, is_kept: NDArray[np.bool_]) -> Part:
        """The part with only the rows of a mask."""
        rows = np.arange(len(self)) if self.chosen is None else self.chosen
        return self if is_kept.all() else Part(self.table, self.source, self.names, rows[is_kept])


class Encoded:
    """Tokens of one split, memory-mapped.

    lengths_n: tokens of each row. learned_n: how many of them are learned. sources_n: number of the row's source in
    the recipe. digest: sha256 of this content in this order.
    notes: lines for the user about these rows, if they are a window of a stream.
    number_token: see `train.data.tokenize.Settings`.
    """

    def __init__(self, parts: Sequence[Part], notes: Sequence[str] = (), number_token: int | None = None) -> None:
        self.parts, self.notes, self.number_token = tuple(parts), tuple(notes), number_token
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
        """(input_ids_t, labels_t) of a row: labels unshifted, -100 if not learned, as for the first token."""
        part, place = self._find(row)
        ids_t, learned_t = part.table.tokens(place)
        return ids_t, np.where(learned_t != 0, ids_t, np.int32(IGNORED))

    def documents(self, row: int) -> list[Document]:
        """The row as a document whose targets are the next tokens."""
        return [Document.to_predict(*self.tokens(row), self.number_values(row))]

    def number_values(self, row: int) -> NDArray[np.float64] | None:
        """[t]: the value of each token that stands for a number, 0.0 for others; None if numbers are ordinary text."""
        if self.number_token is None:
            return None
        part, place = self._find(row)
        ids_t = part.table.tokens(place)[0]
        values_t = np.zeros(len(ids_t))
        values_t[ids_t == self.number_token] = part.table.label_values(place)
        return values_t

    def learned_values(self) -> NDArray[np.float64]:
        """The values of all numbers that are learned, each row once."""
        assert self.number_token is not None
        return np.concatenate([np.empty(0), *(part.learned_values(self.number_token) for part in self.parts)])

    def row_id(self, row: int) -> str:
        """`file:line` of a row, with its number if several rows are on that line."""
        part, place = self._find(row)
        return part.place(place)


class LabelledDataset(Encoded):
    """Rows with labels at their label positions.

    labels: class names in the order of their numbers; empty if labels are values.

    Raises:
        UserError: A row has a label that is not one of `labels`.
    """

    def __init__(self, parts: Sequence[Part], labels: Sequence[str], label_spec: LabelSpec) -> None:
        super().__init__(parts)
        self.second_n: NDArray[np.int32] = self._joined("second_n", np.int32)
        self.labels, self.label_spec = tuple(labels), label_spec
        numbers = {name: float(number) for number, name in enumerate(self.labels)}
        self.numbers = [
            np.array([numbers.get(name, np.nan) for name in part.table.manifest["labels"]]) for part in self.parts
        ]
        for part, known in zip(self.parts, self.numbers, strict=True):
            if np.isnan(known).any():
                _refuse_unknown(part, known, self.labels)

    def label_values(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """(FIRST or FURTHER, label) of each label position of a row: class numbers, or values."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        part, place = self._find(row)
        values_g = part.table.label_values(place)
        label_mask_t = part.table.tokens(place)[1]
        known_g = self.numbers[number][values_g.astype(np.int64)] if self.labels else values_g
        return label_mask_t[label_mask_t != 0], known_g

    def documents(self, row: int) -> list[Document]:
        """The row's tokens, with labels as targets at the label positions."""
        part, place = self._find(row)
        ids_t, label_mask_t = part.table.tokens(place)
        targets_t = np.full(len(ids_t), np.nan)
        targets_t[label_mask_t != 0] = self.label_values(row)[1]
        second = int(self.second_n[row])
        if not self.label_spec.is_of_pairs:
            return [Document(ids_t, targets_t, second)]
        ends = np.flatnonzero(label_mask_t)[:-1] + 1
        pieces = zip(np.split(ids_t, ends), np.split(targets_t, ends), strict=True)
        return [Document(ids, targets, second) for ids, targets in pieces]

    def where(self, row: int) -> tuple[int, int, int, int]:
        """(part, file, line, number) of a row; the windows of one sentence have the same."""
        part, place = self._find(row)
        return (self.parts.index(part), *part.table.place(place))


def _refuse_unknown(part: Part, known: NDArray[np.float64], labels: Sequence[str]) -> None:
    """Raise UserError for the first row of the part whose label is not in `labels`."""
    for row in range(len(part)):
        place = part.where(row)
        for number in part.table.label_values(place).astype(np.int64):
            if np.isnan(known[number]):
                raise UserError(
                    f"{part.place(place)}: label {part.table.manifest['labels'][number]!r} is not in the training "
                    f"data, which has {', '.join(labels)}; list all labels in head.labels"
                )
