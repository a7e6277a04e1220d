"""Which rows of a test set stand in training data too: whole, or with a passage in common.

The index holds the test rows, and training rows pass by once, so that memory does not grow with the training data and
time grows with its length alone. A word is a run of letters and digits, or one letter of a script without spaces
between words (Chinese, Japanese, Thai ...); case, full-width forms, punctuation and spaces make no difference.

Shape suffixes: t words of training rows, one row after another; w passages of the test rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.script import Writing, folded, tokens

PASSAGE = 13  # words; arXiv:2005.14165 (appendix C) calls rows with 13 in common dirty
SHORTEST = 6  # words; a row without a field of 13 is looked for by its longest field, if that has at least these
COMMON_ROWS = 10  # a passage in more test rows than these is an instruction or a form, not a leak
BLOCK = 1_000_000  # words that are compared at once
# Keys whose text is not said to anybody: sequences of tags are alike in all sentences.
NOT_TEXT = frozenset({"role", "from", "id", "image", "image_path", "tags"})
STRENGTH = {"passage": 0, "words": 1, "row": 2}
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Fields = Sequence[str]


def fields(value: Any) -> list[str]:
    """The texts of a row, in order; a list of words is one text."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() if key not in NOT_TEXT for text in fields(inner)]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(inner, str) for inner in value):
            return fields(" ".join(value))
        return [text for inner in value for text in fields(inner)]
    return []


def words(text: str) -> list[str]:
    """The words by which texts are compared."""
    return tokens(folded(text), Writing.UNSPACED)


class Index:
    """Test rows, by number, and where each was first seen in the training data.

    Args:
        tasks: For each task its rows, and for each row its texts. Rows are numbered through all tasks.
    """

    def __init__(self, tasks: Sequence[Sequence[Fields]]) -> None:
        rows = [row for task in tasks for row in task]
        split = [[words(text) for text in row] for row in rows]
        self._found: dict[int, tuple[str, str]] = {}
        self._same = _rows_by(map(_exactly, rows))
        self._alike = _rows_by(map(_alike, split))
        known = {word for texts in split for text in texts for word in text}
        self._numbers = {word: number for number, word in enumerate(sorted(known), start=1)}  # 0: no word of the test
        self._codes = np.random.default_rng(0).integers(1, 2**63, size=len(known) + 1, dtype=np.uint64)
        self._passages = self._sorted_passages([len(task) for task in tasks], split)
        self._waiting: list[int] = []
        self._starts: list[tuple[int, str]] = []  # of training rows: first word, place

    def look_at(self, row: Fields, place: str, goes_on: bool = False) -> None:
        """A training row. goes_on: the next one continues its text, as lines of a file do."""
        split = [words(text) for text in row]
        self._note(self._same.get(_exactly(row), ()), "row", place)
        self._note(self._alike.get(_alike(split), ()), "words", place)
        self._starts.append((len(self._waiting), place))
        for text in split:
            self._waiting += [self._numbers.get(word, 0) for word in text]
            self._waiting += [] if goes_on else [0]  # no passage goes on behind it
        if len(self._waiting) > BLOCK:  # cuts a passage now and then; which then has others around it
            self._compare()

    def found(self) -> dict[int, tuple[str, str]]:
        """Number of a test row -> (how, place) as in `Overlap`: the strongest way, and the first place of it."""
        self._compare()
        return self._found

    def _sorted_passages(
        self, sizes: Sequence[int], split: Sequence[Sequence[Sequence[str]]]
    ) -> dict[int, tuple[Hashes, NDArray[np.int64]]]:
        """length -> (sorted hashes, the row of each), less those that are common in their task."""
        pairs: dict[int, list[tuple[int, int]]] = {}
        first = 0
        for size in sizes:
            own = {row: self._passages_of(split[row]) for row in range(first, first + size)}
            counts = Counter(passage for passages in own.values() for passage in passages)
            most = min(COMMON_ROWS, max(2, size // 2))
            for row, passages in own.items():
                for length, code in passages:
                    if counts[length, code] <= most:
                        pairs.setdefault(length, []).append((code, row))
            first += size
        return {
            length: (np.array([code for code, _ in own], np.uint64), np.array([row for _, row in own], np.int64))
            for length, own in ((length, sorted(found)) for length, found in pairs.items())
        }

    def _passages_of(self, texts: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
        """(length, hash) of those of one test row."""
        length = min(max(map(len, texts), default=0), PASSAGE)
        if length < SHORTEST:
            return set()
        hashes = [_windows(self._codes[[self._numbers[word] for word in text]], length) for text in texts]
        return {(length, code) for own in hashes for code in own.tolist()}

    def _compare(self) -> None:
        """The passages of all waiting training rows."""
        numbers_t = np.array(self._waiting, dtype=np.int64)
        unknown_t = np.concatenate([[0], np.cumsum(numbers_t == 0)])
        starts = np.array([start for start, _ in self._starts], dtype=np.int64)
        for length, (codes_w, rows_w) in self._passages.items():
            if len(numbers_t) < length:
                continue
            whole = np.flatnonzero(unknown_t[length:] == unknown_t[:-length])
            hashes = _windows(self._codes[numbers_t], length)[whole]
            known = np.flatnonzero(np.isin(hashes, codes_w))
            codes, firsts = np.unique(hashes[known], return_index=True)
            left, right = (np.searchsorted(codes_w, codes, side=side) for side in ("left", "right"))
            training = np.searchsorted(starts, whole[known[firsts]], side="right") - 1
            for k in np.argsort(firsts):
                self._note(rows_w[left[k] : right[k]].tolist(), "passage", self._starts[training[k]][1])
        self._waiting, self._starts = [], []

    def _note(self, rows: Sequence[int], how: str, place: str) -> None:
        for row in rows:
            if row not in self._found or STRENGTH[how] > STRENGTH[self._found[row][0]]:
                self._found[row] = (how, place)


def _exactly(row: Fields) -> str:
    return "\n".join(row)


def _alike(split: Sequence[Sequence[str]]) -> str:
    return " ".join(word for text in split for word in text)


def _rows_by(keys: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            rows.setdefault(key, []).append(row)
    return rows


def _windows(codes_t: Hashes, length: int) -> Hashes:
    """A hash of each window of `length` words; two equal hashes are the same words (64 bits: chance is negligible)."""
    count = max(len(codes_t) - length + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * MULTIPLIER + codes_t[offset : offset + count]
    return hashes
