"""Finds rows of a test set that occur in training data, as a whole or with a common passage.

The index holds the test rows, and each training row is read once: memory does not depend on the training data, and
time is linear in its length. A word is a run of letters and digits, or one letter of a script without spaces between
words (Chinese, Japanese, Thai ...); case, full-width forms, punctuation and spaces are ignored.

Shape suffixes: t words of concatenated training rows; w passages of the test rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.writing_system import Writing, folded, tokens

PASSAGE = 13  # words; arXiv:2005.14165 (appendix C) calls rows with 13 words in common dirty
SHORTEST = 6  # words; a row with shorter fields is matched by its longest field, if that has at least 6 words
COMMON_ROWS = 10  # a passage in more test rows than this is an instruction or a template, not a leak
BLOCK = 1_000_000  # words compared at once
# Keys without natural text; sequences of tags are alike in all sentences.
NOT_TEXT = frozenset({"role", "from", "id", "image", "image_path", "tags"})
STRENGTH = {"passage": 0, "words": 1, "row": 2}
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Fields = Sequence[str]


def fields(value: Any) -> list[str]:
    """The texts of a row, in order; a list of words counts as one text."""
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
    """Split a text into the words that are compared."""
    return tokens(folded(text), Writing.UNSPACED)


class Index:
    """Test rows, and where each first occurs in the training data.

    Args:
        tasks: For each task its rows, and for each row its texts. Rows are numbered across tasks.
    """

    def __init__(self, tasks: Sequence[Sequence[Fields]]) -> None:
        rows = [row for task in tasks for row in task]
        split = [[words(text) for text in row] for row in rows]
        self._found: dict[int, tuple[str, str]] = {}
        self._by_text = _rows_by(map(_joined_text, rows))
        self._by_words = _rows_by(map(_joined_words, split))
        known = {word for texts in split for text in texts for word in text}
        self._numbers = {
            word: number for number, word in enumerate(sorted(known), start=1)
        }  # 0: not a word of the test set
        self._codes = np.random.default_rng(0).integers(1, 2**63, size=len(known) + 1, dtype=np.uint64)
        self._passages = self._sorted_passages([len(task) for task in tasks], split)
        self._pending: list[int] = []  # words of training rows that are not compared yet
        self._starts: list[tuple[int, str]] = []  # of training rows: index of the first word, place

    def scan(self, row: Fields, place: str, continues: bool = False) -> None:
        """Compare a training row. continues: its text continues in the next row, as in lines of a file."""
        split = [words(text) for text in row]
        self._record(self._by_text.get(_joined_text(row), ()), "row", place)
        self._record(self._by_words.get(_joined_words(split), ()), "words", place)
        self._starts.append((len(self._pending), place))
        for text in split:
            self._pending += [self._numbers.get(word, 0) for word in text]
            self._pending += [] if continues else [0]  # no passage spans this boundary
        if len(self._pending) > BLOCK:  # may cut one passage, but overlapping passages around it remain
            self._compare()

    def found(self) -> dict[int, tuple[str, str]]:
        """Number of a test row -> (how, place) as in `Overlap`: the strongest match and its first place."""
        self._compare()
        return self._found

    def _sorted_passages(
        self, sizes: Sequence[int], split: Sequence[Sequence[Sequence[str]]]
    ) -> dict[int, tuple[Hashes, NDArray[np.int64]]]:
        """length -> (sorted hashes, row of each), without passages that are common in their task."""
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
        """(length, hash) of each passage of one test row."""
        length = min(max(map(len, texts), default=0), PASSAGE)
        if length < SHORTEST:
            return set()
        hashes = [_windows(self._codes[[self._numbers[word] for word in text]], length) for text in texts]
        return {(length, code) for own in hashes for code in own.tolist()}

    def _compare(self) -> None:
        """Compare the passages of all pending training rows."""
        numbers_t = np.array(self._pending, dtype=np.int64)
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
                self._record(rows_w[left[k] : right[k]].tolist(), "passage", self._starts[training[k]][1])
        self._pending, self._starts = [], []

    def _record(self, rows: Sequence[int], how: str, place: str) -> None:
        for row in rows:
            if row not in self._found or STRENGTH[how] > STRENGTH[self._found[row][0]]:
                self._found[row] = (how, place)


def _joined_text(row: Fields) -> str:
    return "\n".join(row)


def _joined_words(split: Sequence[Sequence[str]]) -> str:
    return " ".join(word for text in split for word in text)


def _rows_by(keys: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            rows.setdefault(key, []).append(row)
    return rows


def _windows(codes_t: Hashes, length: int) -> Hashes:
    """A 64-bit hash of each window of `length` words; collisions are negligible."""
    count = max(len(codes_t) - length + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * MULTIPLIER + codes_t[offset : offset + count]
    return hashes
