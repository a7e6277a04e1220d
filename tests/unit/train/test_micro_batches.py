"""Order, steps and packs: functions of the seed and the lengths, whatever the ranks and the micro-batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ranks import Solo
from tests.support.row_tables import Table, row_ids, shape, table
from train.config import DurationConfig
from train.data.document import IGNORED
from train.data.micro_batches import collate, epoch_steps, micro_batches, order, padding_share, rank_batches
from train.data.schedule import FixedSteps


@pytest.mark.parametrize("packed", [True, False])
def test_every_row_is_learned_once_an_epoch(packed):
    rows = table()
    seen = np.concatenate(epoch_steps(rows, [1.0], shape(packed), seed=3, epoch=0))
    assert sorted(seen.tolist()) == list(range(len(rows)))


@pytest.mark.parametrize("packed", [True, False])
@given(ranks=st.integers(1, 5), micro=st.sampled_from([190, 256, 400]), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_ranks_and_micro_batches_never_change_what_a_step_learns(packed, ranks, micro, seed):
    rows, cut = table(60, seed), shape(packed, micro=micro)
    for step_n in epoch_steps(rows, [1.0], cut, seed, epoch=0):
        groups = micro_batches(step_n, rows.lengths_n, cut, ranks)
        assert len(groups) % ranks == 0
        assert sorted(i for group in groups for i in group) == sorted(step_n.tolist())
        for group in groups:
            lengths = [int(rows.lengths_n[i]) for i in group]
            assert not group or (sum(lengths) if packed else len(lengths) * max(lengths)) <= micro


def test_order_is_a_function_of_seed_and_epoch():
    rows = table()
    first = order(rows.sources_n, [1.0], seed=1, epoch=0)
    assert np.array_equal(first, order(rows.sources_n, [1.0], seed=1, epoch=0))
    assert not np.array_equal(first, order(rows.sources_n, [1.0], seed=1, epoch=1))
    assert not np.array_equal(first, order(rows.sources_n, [1.0], seed=2, epoch=0))


@pytest.mark.parametrize("packed", [True, False])
def test_without_shuffling_steps_follow_the_order_of_the_data(packed):
    rows, still = table(), replace(shape(packed), shuffle=False)
    for epoch in (0, 1):
        steps = epoch_steps(rows, [1.0], still, seed=3, epoch=epoch)
        assert len(steps) > 3
        assert np.concatenate(steps).tolist() == list(range(len(rows)))


def test_weights_are_passes_over_a_source():
    sources = np.array([0] * 10 + [1] * 10, np.int16)
    halves = [order(sources, [2.0, 0.5], seed=0, epoch=e) for e in (0, 1)]
    for drawn in halves:
        counts = np.bincount(drawn, minlength=20)
        assert counts[:10].tolist() == [2] * 10
        assert counts[10:].sum() == 5
    second_source = [set(h[h >= 10].tolist()) for h in halves]
    assert second_source[0] | second_source[1] == set(range(10, 20))


def test_steps_hold_near_equal_tokens():
    rows = table(2000)
    tokens = [int(rows.lengths_n[s].sum()) for s in epoch_steps(rows, [1.0], shape(step=2000), 0, 0)]
    assert max(tokens) - min(tokens) <= 2 * 190


def test_packed_batches_have_no_padding_and_targets_stay_inside_their_document():
    rows = Table([3, 2, 4])
    batch = collate(rows, [2, 0, 1], shape(), filler=0)
    assert batch.inputs["input_ids"].tolist() == [[1002, 7, 7, 7, 1000, 7, 7, 1001, 7]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == [0, 4, 7, 9]
    assert batch.targets.tolist() == [[7, 7, 7, IGNORED, 7, 7, IGNORED, 7, IGNORED]]
    assert (batch.tokens, batch.positions, batch.counts["loss"]) == (9, 9, 6.0)
    assert batch.row_ids == ("rows.jsonl:3", "rows.jsonl:1", "rows.jsonl:2")


def test_padded_batches_mask_what_is_no_token():
    batch = collate(Table([3, 2]), [0, 1], shape(packed=False), filler=0)
    assert batch.inputs["input_ids"].tolist() == [[1000, 7, 7], [1001, 7, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[7, 7, IGNORED], [7, IGNORED, IGNORED]]


def test_a_rank_without_rows_gets_a_filler_that_counts_nothing():
    rows = Table([5])
    batches = [rank_batches(rows, np.array([0]), shape(), rank, 2) for rank in (0, 1)]
    assert [len(b) for b in batches] == [1, 1]
    counts = sorted(b[0].counts["loss"] for b in batches)
    assert counts == [0.0, 4.0]
    idle = next(b[0] for b in batches if b[0].counts["loss"] == 0)
    assert idle.tokens == 0
    assert (idle.targets == IGNORED).all()


@pytest.mark.parametrize(("packed", "limit"), [(True, 0.02), (False, 0.08)])
def test_padding_waste_stays_under_its_promise(packed, limit):
    lengths = np.random.default_rng(0).lognormal(5.0, 0.9, 4000).astype(int).clip(8, 1024)
    rows = Table(lengths)
    cut = shape(packed, step=16_384, micro=4096)
    steps = epoch_steps(rows, [1.0], cut, 0, 0)
    assert padding_share(rows.lengths_n, steps, cut, ranks=2) <= limit
    batches = [b for rank in (0, 1) for s in steps[:8] for b in rank_batches(rows, s, cut, rank, 2)]
    measured = 1 - sum(b.tokens for b in batches) / sum(b.positions for b in batches)
    assert measured == pytest.approx(padding_share(rows.lengths_n, steps[:8], cut, 2), abs=1e-9)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (DurationConfig(max_epochs=2), 20),
        (DurationConfig(max_epochs=1.5), 15),
        (DurationConfig(max_epochs=5, max_steps=7), 7),
        (DurationConfig(max_epochs=None, max_steps=33), 33),
        (DurationConfig(max_epochs=5, max_tokens=1000), 10),
    ],
)
def test_what_comes_first_ends_the_run(duration, steps):
    rows = Table([10] * 100)
    source = FixedSteps(rows, [1.0], shape(step=100, micro=50), 0, duration, Solo())
    assert source.plan.total_steps == steps
    assert len(list(source.walk(0))) == steps
    assert [source.plan.epoch(step) for step in (5, steps)] == pytest.approx([0.5, steps / 10])
    assert f", {steps / 10:g} epoch{'s' * (steps != 10)}, " in source.plan.lines[1]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 14])
def test_resuming_anywhere_gives_the_same_steps(start):
    rows = table(300)
    source = FixedSteps(rows, [1.0], shape(), 5, DurationConfig(max_epochs=2), Solo())
    whole = [row_ids(step) for step in source.walk(0)]
    assert [row_ids(step) for step in source.walk(start)] == whole[start:]
