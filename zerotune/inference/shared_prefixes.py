"""Finds common prefixes of token sequences, so that each is computed once. Uses neither a model nor torch.

Sequences are sorted, so that those with a common prefix are adjacent. Adjacent ones that share enough form a group. A
group is computed in packs: a pack is one row that holds a tree of tokens in preorder, after a shared cached prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Positions = NDArray[np.int64]
GROUP_SHARE = 4  # adjacent sequences of a group share at least 1/4 of the longer one: less does not pay for packing
PREFIX_SHARE = 8  # a prefix gets its own forward pass if it has at least 1/8 of a pack's tokens
LEAST_PREFIX = 8  # tokens; and at least these


@dataclass(frozen=True)
class TokenSequence:
    """A token sequence to compute.

    first: the first position whose hidden state is needed. common: number of tokens shared with the previous sequence.
    row_indices: of the rows that need this sequence or a prefix of it.
    """

    ids: Tokens
    first: int
    common: int
    row_indices: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """The first `count` sequences of a group as one row.

    shared: length of the cached prefix before it. ids, depths: tokens in preorder of their tree, and their positions
    in their sequences. ends: for each token the index after its last descendant; tokens from itself up to there see it.
    token_indices: for each sequence, where its tokens from `shared` on are in `ids`.
    """

    shared: int
    ids: Tokens
    depths: Positions
    ends: Positions
    token_indices: tuple[Positions, ...]

    @property
    def count(self) -> int:
        return len(self.token_indices)


def sorted_sequences(rows: Sequence[tuple[Sequence[int], int]], join: bool = True) -> list[TokenSequence]:
    """The sequences of `rows` (tokens, first needed position), sorted.

    join: merge a row into the sequence that it equals or is a prefix of.
    """
    order = sorted(range(len(rows)), key=lambda k: tuple(rows[k][0]))
    arrays = [np.asarray(rows[k][0], dtype=np.int64) for k in order]
    shared = [0, *(common(one, other) for one, other in pairwise(arrays)), 0]
    sequences: list[TokenSequence] = []
    indices: list[int] = []
    least = 0
    for place, index in enumerate(order):
        least = min(least, shared[place]) if indices else shared[place]
        indices.append(index)
        if join and place + 1 < len(order) and shared[place + 1] == len(arrays[place]):
            continue  # the next row extends this one
        sequences.append(TokenSequence(arrays[place], min(rows[k][1] for k in indices), least, tuple(indices)))
        indices = []
    return sequences


def groups(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """Yield groups of adjacent sequences that share enough tokens; one that shares too few is a group of its own."""
    group: list[TokenSequence] = []
    for sequence in sequences:
        if group and sequence.common * GROUP_SHARE < max(len(group[-1].ids), len(sequence.ids)):
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group


def next_pack(sequences: Sequence[TokenSequence], cached: int, limit: int, most: int | None = None) -> Pack:
    """The next pack of a group's remaining `sequences`.

    cached: tokens of the first sequence that are cached. The pack's `shared` is larger if a longer prefix serves enough
    of the next sequences, and smaller if a slightly shorter one lets more sequences in. limit: maximum tokens of the
    pack; it takes at least one sequence. most: maximum sequences.
    """
    least = max(limit // PREFIX_SHARE, LEAST_PREFIX)
    start = min(cached, sequences[0].first)
    taken, shared = _fill(sequences[:most], start, limit, least)
    if taken < len(sequences):
        ahead = _shared_ahead(sequences, limit)
        if ahead - start >= least:
            taken, shared = _fill(sequences[:most], ahead, limit, least)
    return _packed(sequences[:taken], shared)


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


def _fill(sequences: Sequence[TokenSequence], start: int, limit: int, least: int) -> tuple[int, int]:
    """The number of sequences that fit after a prefix of `start` tokens, and the length of the prefix they share."""
    shared, tokens = start, len(sequences[0].ids) - start
    for taken, sequence in enumerate(sequences[1:], 1):
        lower = min(shared, sequence.common, sequence.first)
        more = len(sequence.ids) - sequence.common + shared - lower
        if tokens + more > limit or start - lower > least:
            return taken, shared
        shared, tokens = lower, tokens + more
    return len(sequences), shared


def _shared_ahead(sequences: Sequence[TokenSequence], limit: int) -> int:
    """Length of the prefix shared by as many of the next sequences as fill a pack."""
    shared, tokens = sequences[0].first, 0
    for sequence in sequences[1:]:
        shared = min(shared, sequence.common, sequence.first)
        tokens += len(sequence.ids) - sequence.common
        if tokens >= limit:
            break
    return shared


def _packed(sequences: Sequence[TokenSequence], shared: int) -> Pack:
    kept = [shared, *(sequence.common for sequence in sequences[1:])]  # tokens that an earlier sequence has too
    sizes = [len(sequence.ids) - depth for sequence, depth in zip(sequences, kept, strict=True)]
    starts = np.cumsum([0, *sizes])
    ends = np.full(starts[-1], starts[-1])
    token_indices: list[Positions] = []
    before = np.zeros(0, dtype=np.int64)
    for depth, size, start in zip(kept, sizes, starts, strict=False):
        ends[before[depth - shared :]] = start  # tokens that this sequence does not continue have no more descendants
        before = np.concatenate([before[: depth - shared], np.arange(start, start + size)])
        token_indices.append(before)
    ids = np.concatenate([sequence.ids[depth:] for sequence, depth in zip(sequences, kept, strict=True)])
    depths = np.concatenate([np.arange(k, len(sequence.ids)) for sequence, k in zip(sequences, kept, strict=True)])
    return Pack(shared, ids, depths, ends, tuple(token_indices))


def chain(ids: Tokens, start: int) -> Pack:
    """The pack of one sequence whose first `start` tokens are cached."""
    return _packed([TokenSequence(ids, start, 0, ())], start)
