"""Selects the rows of a task for `--max_rows`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from eval.protocols import Identified
from eval.result import Subsample

Item = TypeVar("Item", bound=Identified)


def take_subsample(items: Sequence[Item], count: int, seed: int | None) -> list[Item]:
    """Select `count` items (0: all), in their order: at random with a seed, else round-robin over the files.

    Round-robin takes the first item of each file, then the second of each, and so on.
    """
    if not 0 < count < len(items):
        return list(items)
    if seed is None:
        turns = _turns(items)
        order = sorted(range(len(items)), key=turns.__getitem__)  # stable: files keep their order
    else:
        order = np.random.default_rng(seed).permutation(len(items)).tolist()  # as `datasets` shuffles
    return [items[k] for k in sorted(order[:count])]


def describe_subsample(items: Sequence[Identified], chosen: Sequence[Identified]) -> Subsample | None:
    """How many items and files were chosen; None if all items were."""
    if len(chosen) == len(items):
        return None
    return Subsample(len(chosen), len(items), len(set(_files(chosen))), len(set(_files(items))))


def _turns(items: Sequence[Identified]) -> list[int]:
    """For each item, the number of earlier items of the same file."""
    seen: Counter[str] = Counter()
    turns = []
    for file in _files(items):
        turns.append(seen[file])
        seen[file] += 1
    return turns


def _files(items: Iterable[Identified]) -> list[str]:
    return [item.id.rpartition(":")[0] for item in items]
