"""Which rows are asked where --max_rows asks fewer than there are: of every file some, or drawn with a seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eval.result import Subsample
from eval.subsample import describe_subsample, take_subsample
from zerotune.data.rows import Example


def rows(**sizes: int) -> list[Example]:
    """So many rows of each file, one file after the other."""
    return [Example(f"{name}.jsonl:{line}") for name, size in sizes.items() for line in range(1, size + 1)]


def lines(items: Sequence[Example]) -> list[str]:
    return [item.id.replace(".jsonl:", "") for item in items]


@pytest.mark.parametrize(
    ("sizes", "count", "chosen"),
    [
        ({"a": 5}, 2, ["a1", "a2"]),  # of one file the first
        ({"a": 5, "b": 5}, 6, ["a1", "a2", "a3", "b1", "b2", "b3"]),
        ({"a": 5, "b": 5}, 5, ["a1", "a2", "a3", "b1", "b2"]),
        ({"a": 9, "b": 1, "c": 3}, 6, ["a1", "a2", "a3", "b1", "c1", "c2"]),  # a short file leaves its turns to others
        ({"a": 2, "b": 2, "c": 2}, 2, ["a1", "b1"]),
        ({"a": 2, "b": 1}, 3, ["a1", "a2", "b1"]),
        ({"a": 2, "b": 1}, 0, ["a1", "a2", "b1"]),
    ],
)
def test_files_take_turns(sizes: dict[str, int], count: int, chosen: list[str]) -> None:
    assert lines(take_subsample(rows(**sizes), count, seed=None)) == chosen


def test_rows_on_one_line_are_of_the_same_file() -> None:
    items = [Example(f"{name}.json:1, row {number}") for name in "ab" for number in (1, 2, 3)]
    assert take_subsample(items, 2, seed=None) == [items[0], items[3]]


def test_a_seed_draws_from_all_files_together_in_their_order() -> None:
    items = rows(a=40, b=40)
    drawn = take_subsample(items, 10, seed=42)
    assert len(drawn) == 10
    assert drawn == take_subsample(items, 10, seed=42) != take_subsample(items, 10, seed=7)
    assert drawn == sorted(drawn, key=items.index)


def test_what_was_left_out_is_counted() -> None:
    items = rows(a=3, b=2, c=1)
    assert describe_subsample(items, take_subsample(items, 2, seed=None)) == Subsample(
        rows=2, of_rows=6, files=2, of_files=3
    )
    assert describe_subsample(items, take_subsample(items, 0, seed=None)) is None
