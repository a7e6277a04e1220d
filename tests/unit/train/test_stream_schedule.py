"""Steps over a stream: full whatever the windows, ended by the first limit, the same wherever a run takes up again."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.support.ranks import Solo
from tests.support.row_tables import Table, row_ids, shape, table
from train.config import DurationConfig
from train.data.stream_schedule import StreamedSteps


class Window(Table):
    """A table whose rows are told from those of other windows."""

    def __init__(self, lengths, name, notes=()):
        super().__init__(lengths)
        self.name, self.notes = name, notes

    def row_id(self, index):
        return f"{self.name}:{index + 1}"


def windows_of(count, rows, seed=0):
    """Windows that each epoch has, as a function of the epoch."""

    def windows(epoch):
        for number in range(count):
            yield Window(table(rows, seed + number).lengths_n, f"window{number}")

    return windows


def steps_of(windows, cut=None, duration=None, ranks=None):
    return StreamedSteps(windows, cut or shape(), 0, duration or DurationConfig(None, max_steps=20), ranks or Solo())


def tokens_of(batches):
    return sum(batch.tokens for batch in batches)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 40, 500])
def test_every_step_is_full_however_small_the_windows(packed, rows):
    source = steps_of(windows_of(1000, rows), shape(packed, step=2000))
    tokens = [tokens_of(step) for step in source.walk(0)]
    assert len(tokens) == 20
    assert all(abs(count - 2000) <= 2 * 190 for count in tokens)


@pytest.mark.parametrize("packed", [True, False])
def test_max_epochs_shows_every_row_that_often_and_ends(packed):
    source = steps_of(windows_of(3, 7), shape(packed), DurationConfig(max_epochs=2, max_steps=1000))
    seen = [row for step in source.walk(0) for row in row_ids(step)]
    assert sorted(seen) == sorted([f"window{w}:{i + 1}" for w in range(3) for i in range(7)] * 2)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 399, 400, 401, 12_345])
def test_max_tokens_ends_with_the_row_that_reaches_it(packed, max_tokens):
    source = steps_of(windows_of(5, 30), shape(packed), DurationConfig(None, None, max_tokens))
    planned = source.plan.total_steps
    steps = list(source.walk(0))
    seen = sum(map(tokens_of, steps))
    assert max_tokens <= seen < max_tokens + 190
    assert len(steps) <= planned == -(-max_tokens // 400)


def test_what_comes_first_ends_the_stream():
    rows = [10] * 100

    def windows(epoch):
        yield Window(rows, "a")

    def count(**limits):
        return len(list(steps_of(windows, shape(step=100), DurationConfig(**{"max_epochs": None, **limits})).walk(0)))

    assert count(max_steps=7, max_tokens=10_000, max_epochs=3) == 7
    assert count(max_steps=70, max_tokens=1_000, max_epochs=3) == 10
    assert count(max_steps=70, max_tokens=10_000, max_epochs=3) == 30


def test_the_plan_knows_the_end_as_soon_as_the_last_step_is_there():
    source = steps_of(windows_of(2, 40), duration=DurationConfig(max_epochs=1, max_steps=1000))
    whole = len(list(source.walk(0)))
    again = steps_of(windows_of(2, 40), duration=DurationConfig(max_epochs=1, max_steps=1000))
    totals = [again.plan.total_steps for _ in again.walk(0)]
    assert totals == [1000] * (whole - 1) + [whole]
    resumed = steps_of(windows_of(2, 40), duration=DurationConfig(max_epochs=1, max_steps=1000))
    assert list(resumed.walk(whole)) == []
    assert resumed.plan.total_steps == whole


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("start", [0, 1, 6, 13, 19])
def test_resuming_anywhere_gives_the_same_steps(packed, start):
    source = steps_of(windows_of(3, 40), shape(packed))
    whole = [row_ids(step) for step in source.walk(0)]
    assert len(whole) == 20
    assert [row_ids(step) for step in source.walk(start)] == whole[start:]
    assert source.plan.epoch_ends == ()


def test_no_window_is_read_before_it_is_needed():
    opened = []

    def windows(epoch):
        for number in range(100):
            opened.append(number)
            yield Window([10] * 100, f"window{number}")

    walk = steps_of(windows, shape(step=100)).walk(0)
    for _ in range(9):
        next(walk)
    assert opened == [0]
    next(walk)
    assert opened == [0, 1]  # only now it shows whether that was the last step


def test_the_order_is_another_one_each_epoch():
    def halves(cut):
        source = steps_of(lambda epoch: [Window([10] * 20, "w")], cut, DurationConfig(2, max_steps=1000))
        return [sorted(row_ids(step)) for step in source.walk(0)]

    first, _, other, _ = halves(shape(step=100))
    assert first != other
    first, _, other, _ = halves(replace(shape(step=100), shuffle=False))
    assert first == other == sorted(f"w:{i + 1}" for i in range(10))


def test_the_notes_of_a_window_are_said_once_by_the_first_rank(caplog):
    def windows(epoch):
        for number in range(3):
            yield Window([10] * 10, f"w{number}", [f"window {number}: 1 of 11 rows left out", "WARNING: overlap"])

    class Second(Solo):
        index, count = 1, 2

    caplog.set_level(logging.INFO)
    limits = DurationConfig(2, max_steps=1000)
    list(steps_of(windows, shape(step=100), limits, Second()).walk(0))
    assert caplog.messages == []
    list(steps_of(windows, shape(step=100), limits).walk(0))
    assert [m for m in caplog.messages if "left out" in m] == [f"window {n}: 1 of 11 rows left out" for n in range(3)]
    assert {r.levelname for r in caplog.records if "overlap" in r.message} == {"WARNING"}
    caplog.clear()
    list(steps_of(windows, shape(step=100), DurationConfig(1, max_steps=1000)).walk(2))
    assert [m for m in caplog.messages if "left out" in m] == ["window 2: 1 of 11 rows left out"]


def test_a_window_without_rows_is_told_too(caplog):
    def windows(epoch):
        yield Window([10] * 3, "a")
        yield Window([], "b", ["window 1: 4 of 4 rows left out"])
        yield Window([10] * 3, "c")
        yield Window([10] * 30, "d")

    caplog.set_level(logging.INFO)
    steps = list(steps_of(windows, shape(step=100), DurationConfig(1, max_steps=1000)).walk(0))
    assert caplog.messages == ["window 1: 4 of 4 rows left out"]
    assert [tokens_of(step) for step in steps] == [100, 100, 100, 60]
