"""Rows that repeat: equal ones, nearly equal ones, and training rows that are also in the validation data.

Shape suffixes: n rows, k tokens of several rows one after another, m candidates, p permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from train.check.findings import SHOWN, Finding
from train.check.load import Loaded, SourceRows
from train.data.held_out import overlap
from train.data.token_dataset import Part

SHINGLE = 5  # tokens
SIMILAR = 0.8  # estimated share of common shingles (Jaccard) from which rows are nearly equal
PERMUTATIONS, BAND = 128, 6  # rows that agree in a band are compared: 99.8 % of the pairs at SIMILAR, 92 % at 0.7
FEWEST_SHINGLES = 8  # of a row that is compared; shorter ones are alike by chance
BOILERPLATE = 0.5  # share of a source's rows from which a shingle is the template's or the system prompt's
SMALLEST_SOURCE, SAMPLE = 20, 2000  # rows from which on that share is measured, and by how many
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


def findings(loaded: Loaded) -> Iterator[Finding]:
    """Duplicates within the training data, and overlap with the validation data."""
    train, held = loaded.of(True), loaded.of(False)
    if not train:
        return
    full_n = np.concatenate([rows.column("full_n") for rows in train])
    first_n = np.concatenate([rows.first_n for rows in train])
    earlier_n = _earlier(full_n, first_n)
    yield from _by_source("duplicate", train, earlier_n)
    near_n = near_duplicates(train)
    near_n[earlier_n >= 0] = -1
    yield from _by_source("near_duplicate", train, near_n)
    if held:
        masks = overlap(*([part for rows in group for part in rows.parts] for group in (train, held)))
        for kind, mask_n in zip(("overlap", "prompt_overlap"), masks, strict=True):
            yield from _by_source(kind, train, np.where(mask_n & first_n, -2, -1))


def _earlier(full_n: Hashes, first_n: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row the first one of equal content, if that is an earlier one; else -1."""
    places_n = np.flatnonzero(first_n & (full_n != 0))
    _, first, inverse = np.unique(full_n[places_n], return_index=True, return_inverse=True)
    earlier_n = np.full(len(full_n), -1, np.int64)
    found_n = places_n[first][inverse]
    earlier_n[places_n] = np.where(found_n < places_n, found_n, -1)
    return earlier_n


def _by_source(kind: str, sources: Sequence[SourceRows], earlier_n: NDArray[np.int64]) -> Iterator[Finding]:
    """A finding for each source. earlier_n: the row that each repeats, -1 for none, -2 for one that is not named."""
    start = 0
    for rows in sources:
        own_n = earlier_n[start : start + len(rows)]
        found = np.flatnonzero(own_n != -1)
        examples = [
            rows.place(row) + ("" if own_n[row] < 0 else f" = {_place(sources, int(own_n[row]))}")
            for row in found[:SHOWN].tolist()
        ]
        yield Finding(kind, rows.name, len(found), int(rows.first_n.sum()), examples)
        start += len(rows)


def _place(sources: Sequence[SourceRows], row: int) -> str:
    for rows in sources:
        if row < len(rows):
            return rows.place(row)
        row -= len(rows)
    raise IndexError(row)


def near_duplicates(sources: Sequence[SourceRows]) -> NDArray[np.int64]:
    """For each row an earlier one that is nearly equal, or -1: by MinHash of its shingles of tokens."""
    digests, compared = [], []
    for rows in sources:
        common = _boilerplate(rows)
        for part in rows.parts:
            digest_np, is_compared_n = _of_part(part, common)
            digests.append(digest_np)
            compared.append(is_compared_n)
    digest_mp, is_compared_n = np.concatenate(digests), np.concatenate(compared)
    compared_m = np.flatnonzero(is_compared_n)
    earlier_m = _most_similar(digest_mp)
    near_n = np.full(len(is_compared_n), -1, np.int64)
    near_n[compared_m] = np.where(earlier_m >= 0, compared_m[earlier_m], -1)
    return near_n


def _most_similar(digest_mp: NDArray[np.uint32]) -> NDArray[np.int64]:
    """For each row the first one that shares a band of its digest, if they are similar; else -1."""
    earlier_m = np.full(len(digest_mp), -1, np.int64)
    for start in range(0, PERMUTATIONS - BAND + 1, BAND):
        key_m = np.zeros(len(digest_mp), np.uint64)
        for place in range(start, start + BAND):
            key_m = _mixed(key_m ^ digest_mp[:, place])
        _, first, inverse = np.unique(key_m, return_index=True, return_inverse=True)
        other_m = first[inverse]
        asked = np.flatnonzero((other_m < np.arange(len(digest_mp))) & (earlier_m < 0))
        is_similar = (digest_mp[asked] == digest_mp[other_m[asked]]).mean(axis=1) >= SIMILAR
        earlier_m[asked[is_similar]] = other_m[asked[is_similar]]
    return earlier_m


def _boilerplate(rows: SourceRows) -> Hashes:
    """The shingles of most rows, by a sample of them: what a template or a system prompt writes."""
    if len(rows) < SMALLEST_SOURCE:
        return np.empty(0, np.uint64)
    sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLE, dtype=np.int64))
    found = map(rows.find, sample.tolist())
    ids = [part.table.tokens(number)[0] for part, number in found]
    distinct = [np.unique(_shingles(ids_t, np.array([0, len(ids_t)]))[0]) for ids_t in ids]
    hashes, often = np.unique(np.concatenate(distinct), return_counts=True)
    return hashes[often > BOILERPLATE * len(sample)]


def _of_part(part: Part, common: Hashes) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """(digests of the rows that are long enough to be compared, a mask of these). common: shingles to leave out."""
    digests, counts, start = [np.empty((0, PERMUTATIONS), np.uint32)], [np.empty(0, np.int64)], 0
    is_chosen_n = np.ones(len(part.table), np.bool_)
    if part.chosen is not None:
        is_chosen_n[:] = False
        is_chosen_n[part.chosen] = True
    for (offsets, ids_k), _ in part.table.lists:
        hash_k, counts_n = _shingles(ids_k, offsets)
        row_k = np.repeat(np.arange(len(counts_n)), counts_n)
        is_kept_k = is_chosen_n[start + row_k] & ~_contains(common, hash_k)
        counts_n = np.bincount(row_k[is_kept_k], minlength=len(counts_n))
        is_long_n = counts_n >= FEWEST_SHINGLES
        hash_k = hash_k[is_kept_k & is_long_n[row_k]]
        ends_n = np.cumsum([0, *counts_n[is_long_n]], dtype=np.uint64)
        counts.append(counts_n)
        if is_long_n.any():
            made = RMinHash.digest_matrix_from_flat_token_hashes(hash_k, ends_n, PERMUTATIONS, 0)
            digests.append(np.array(made.to_rows(), np.uint32))
        start += len(counts_n)
    return np.concatenate(digests), np.concatenate(counts)[is_chosen_n] >= FEWEST_SHINGLES


def _shingles(ids_k: NDArray[np.int32], offsets: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.int64]]:
    """(hash of each shingle of each row, how many each row has)."""
    start, end = int(offsets[0]), int(offsets[-1])
    own_k, lengths_n = ids_k[start:end].astype(np.uint64), np.diff(offsets)
    code_k = np.zeros(max(len(own_k) - SHINGLE + 1, 0), np.uint64)
    for shift in range(SHINGLE):
        code_k = _mixed(code_k ^ own_k[shift : len(code_k) + shift])
    left_k = np.repeat(offsets[1:] - start, lengths_n)[: len(code_k)] - np.arange(len(code_k))
    return code_k[left_k >= SHINGLE], np.maximum(lengths_n - SHINGLE + 1, 0)


def _mixed(code: Hashes) -> Hashes:
    mixed: Hashes = code * MULTIPLIER
    return mixed ^ (mixed >> np.uint64(29))


def _contains(values: Hashes, asked: Hashes) -> NDArray[np.bool_]:
    """Whether each hash is one of the sorted values; for few values far faster than `np.isin`."""
    if not len(values):
        return np.zeros(len(asked), np.bool_)
    found: NDArray[np.bool_] = values[np.searchsorted(values, asked) % len(values)] == asked
    return found
