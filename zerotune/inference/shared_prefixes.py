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
GROUP_SHARE = 4  # adjacent lines of a group share at least 1/4 of the longer one: less does not pay for packing
PREFIX_SHARE = 8  # a prefix gets its own forward pass if it has at least 1/8 of a pack's tokens
LEAST_PREFIX = 8  # tokens; and at least these


@dataclass(frozen=True)
class Line:
    """A token sequence to compute.

    first: the first position whose hidden state is needed. common: tokens shared with the previous line. members:
    indices of the rows that need this line or a prefix of it.
    """

    ids: Tokens
    first: int
    common: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """The first `lines` lines of a group as one row.

    shared: length of the cached prefix before it. ids, depths: tokens in preorder of their tree, and their positions
    in their lines. ends: for each token the index after its last descendant; tokens from itself up to there see it.
    paths: for each line the indices of its tokens from `shared` on.
    """

    shared: int
    ids: Tokens
    depths: Positions
    ends: Positions
    paths: tuple[Positions, ...]

    @property
    def lines(self) -> int:
        return len(self.paths)


def sorted_lines(rows: Sequence[tuple[Sequence[int], int]], join: bool = True) -> list[Line]:
    """The lines of `rows` (tokens, first needed position), sorted.

    join: merge a row into the line that it equals or is a prefix of.
    """
    order = sorted(range(len(rows)), key=lambda k: tuple(rows[k][0]))
    arrays = [np.asarray(rows[k][0], dtype=np.int64) for k in order]
    shared = [0, *(common(one, other) for one, other in pairwise(arrays)), 0]
    lines: list[Line] = []
    members: list[int] = []
    least = 0
    for place, index in enumerate(order):
        least = min(least, shared[place]) if members else shared[place]
        members.append(index)
        if join and place + 1 < len(order) and shared[place + 1] == len(arrays[place]):
            continue  # the next row extends this one
        lines.append(Line(arrays[place], min(rows[k][1] for k in members), least, tuple(members)))
        members = []
    return lines


def groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Yield groups of adjacent lines that share enough tokens; a line that shares too few is a group of its own."""
    group: list[Line] = []
    for line in lines:
        if group and line.common * GROUP_SHARE < max(len(group[-1].ids), len(line.ids)):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def next_pack(lines: Sequence[Line], cached: int, limit: int, most: int | None = None) -> Pack:
    """The next pack of a group's remaining `lines`.

    cached: tokens of the first line that are cached. The pack's `shared` is larger if a longer prefix serves enough
    of the next lines, and smaller if a slightly shorter one lets more lines in. limit: maximum tokens of the pack; it
    takes at least one line. most: maximum lines.
    """
    least = max(limit // PREFIX_SHARE, LEAST_PREFIX)
    start = min(cached, lines[0].first)
    taken, shared = _fill(lines[:most], start, limit, least)
    if taken < len(lines):
        ahead = _shared_ahead(lines, limit)
        if ahead - start >= least:
            taken, shared = _fill(lines[:most], ahead, limit, least)
    return _packed(lines[:taken], shared)


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


def _fill(lines: Sequence[Line], start: int, limit: int, least: int) -> tuple[int, int]:
    """The number of lines that fit after a prefix of `start` tokens, and the length of the prefix that all share."""
    shared, tokens = start, len(lines[0].ids) - start
    for taken, line in enumerate(lines[1:], 1):
        lower = min(shared, line.common, line.first)
        more = len(line.ids) - line.common + shared - lower
        if tokens + more > limit or start - lower > least:
            return taken, shared
        shared, tokens = lower, tokens + more
    return len(lines), shared


def _shared_ahead(lines: Sequence[Line], limit: int) -> int:
    """Length of the prefix shared by as many of the next lines as fill a pack."""
    shared, tokens = lines[0].first, 0
    for line in lines[1:]:
        shared = min(shared, line.common, line.first)
        tokens += len(line.ids) - line.common
        if tokens >= limit:
            break
    return shared


def _packed(lines: Sequence[Line], shared: int) -> Pack:
    kept = [shared, *(line.common for line in lines[1:])]  # tokens of each line that an earlier line holds
    sizes = [len(line.ids) - depth for line, depth in zip(lines, kept, strict=True)]
    starts = np.cumsum([0, *sizes])
    ends = np.full(starts[-1], starts[-1])
    paths: list[Positions] = []
    before = np.zeros(0, dtype=np.int64)
    for depth, size, start in zip(kept, sizes, starts, strict=False):
        ends[before[depth - shared :]] = start  # tokens that this line does not continue have no more descendants
        before = np.concatenate([before[: depth - shared], np.arange(start, start + size)])
        paths.append(before)
    ids = np.concatenate([line.ids[depth:] for line, depth in zip(lines, kept, strict=True)])
    depths = np.concatenate([np.arange(depth, len(line.ids)) for line, depth in zip(lines, kept, strict=True)])
    return Pack(shared, ids, depths, ends, tuple(paths))


def chain(ids: Tokens, start: int) -> Pack:
    """The pack of one line whose first `start` tokens are cached."""
    return _packed([Line(ids, start, 0, ())], start)
