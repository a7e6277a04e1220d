"""What rows of tokens have in common, so that it is computed once. Arithmetic over sorted rows; no model, no torch.

Rows are sorted, so those that begin alike are neighbours. Neighbours that share enough form a group. A group is
computed in packs: a pack is one row that holds a tree of tokens in preorder, behind a cached prefix that all share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Places = NDArray[np.int64]
WORTH_A_GROUP = 4  # neighbours share at least 1/4 of the longer one: less saves less than packing costs
WORTH_A_RUN = 8  # a prefix gets a forward pass of its own from 1/8 of a pack on ...
LEAST_RUN = 8  # ... and from so many tokens


@dataclass(frozen=True)
class Line:
    """Tokens to be computed, for one asker or several.

    first: the first place whose hidden state is needed. common: tokens shared with the line before. members: the
    askers, each of whom needs the line or a beginning of it.
    """

    ids: Tokens
    first: int
    common: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """The first `lines` lines of a group as one row.

    shared: tokens that come before, from the cache. ids, depths: tokens in preorder of their tree, and their places in
    their own lines. ends: for each token the index after its last descendant; it is seen by those from itself to there.
    paths: for each line the indices of its tokens from `shared` on.
    """

    shared: int
    ids: Tokens
    depths: Places
    ends: Places
    paths: tuple[Places, ...]

    @property
    def lines(self) -> int:
        """How many."""
        return len(self.paths)


def sorted_lines(rows: Sequence[tuple[Sequence[int], int]], join: bool = True) -> list[Line]:
    """A line for each of `rows` (tokens, first needed place), sorted.

    join: a row that is the beginning of another is a member of that line, as is a row equal to another.
    """
    order = sorted(range(len(rows)), key=lambda k: tuple(rows[k][0]))
    arrays = [np.asarray(rows[k][0], dtype=np.int64) for k in order]
    shared = [0, *(_common(one, other) for one, other in pairwise(arrays)), 0]
    lines: list[Line] = []
    members: list[int] = []
    common = 0
    for place, index in enumerate(order):
        common = shared[place] if not members else min(common, shared[place])
        members.append(index)
        if join and place + 1 < len(order) and shared[place + 1] == len(arrays[place]):
            continue  # what extends it stands next to it
        lines.append(Line(arrays[place], min(rows[k][1] for k in members), common, tuple(members)))
        members = []
    return lines


def groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Neighbours that share enough of their tokens; a line that shares too little is alone."""
    group: list[Line] = []
    for line in lines:
        if group and line.common * WORTH_A_GROUP < max(len(group[-1].ids), len(line.ids)):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def next_pack(lines: Sequence[Line], cached: int, limit: int, most: int | None = None) -> Pack:
    """The next pack of a group's remaining `lines`.

    cached: how many tokens of the first line are cached already. The pack's `shared` is more where a longer prefix
    serves enough of what follows, and less where a little less lets more lines in. limit: most tokens of the pack;
    at least one line is taken. most: lines to take.
    """
    worth = max(limit // WORTH_A_RUN, LEAST_RUN)
    start = min(cached, lines[0].first)
    taken, shared = _fill(lines[:most], start, limit, worth)
    if taken < len(lines):
        ahead = _shared_ahead(lines, limit)
        if ahead - start >= worth:
            taken, shared = _fill(lines[:most], ahead, limit, worth)
    return _packed(lines[:taken], shared)


def _common(one: Tokens, other: Tokens) -> int:
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


def _fill(lines: Sequence[Line], start: int, limit: int, worth: int) -> tuple[int, int]:
    """How many lines fit behind a prefix of `start` tokens, and what is left of the prefix if all of them share it."""
    shared, tokens = start, len(lines[0].ids) - start
    for taken, line in enumerate(lines[1:], 1):
        lower = min(shared, line.common, line.first)
        more = len(line.ids) - line.common + shared - lower
        if tokens + more > limit or start - lower > worth:
            return taken, shared
        shared, tokens = lower, tokens + more
    return len(lines), shared


def _shared_ahead(lines: Sequence[Line], limit: int) -> int:
    """The prefix that the next lines share, so many of them that a pack would be full."""
    shared, tokens = lines[0].first, 0
    for line in lines[1:]:
        shared = min(shared, line.common, line.first)
        tokens += len(line.ids) - line.common
        if tokens >= limit:
            break
    return shared


def _packed(lines: Sequence[Line], shared: int) -> Pack:
    kept = [shared, *(line.common for line in lines[1:])]  # the tokens of each line that are there already
    sizes = [len(line.ids) - depth for line, depth in zip(lines, kept, strict=True)]
    starts = np.cumsum([0, *sizes])
    ends = np.full(starts[-1], starts[-1])
    paths: list[Places] = []
    before = np.zeros(0, dtype=np.int64)
    for depth, size, start in zip(kept, sizes, starts, strict=False):
        ends[before[depth - shared :]] = start  # what this line does not continue has no more descendants
        before = np.concatenate([before[: depth - shared], np.arange(start, start + size)])
        paths.append(before)
    ids = np.concatenate([line.ids[depth:] for line, depth in zip(lines, kept, strict=True)])
    depths = np.concatenate([np.arange(depth, len(line.ids)) for line, depth in zip(lines, kept, strict=True)])
    return Pack(shared, ids, depths, ends, tuple(paths))


def chain(ids: Tokens, start: int) -> Pack:
    """The pack of one line of which `start` tokens are cached."""
    return _packed([Line(ids, start, 0, ())], start)
