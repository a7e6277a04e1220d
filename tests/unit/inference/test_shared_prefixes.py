"""Prefixes: every sequence can be read back from its pack, and nothing that it must not see is seen."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zerotune.inference.shared_prefixes import Pack, TokenSequence, groups, next_pack, sorted_sequences

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=25)


def rows_of(tokens: list[tuple[int, ...]], needed: int) -> list[tuple[tuple[int, ...], int]]:
    return [(ids, min(needed, len(ids) - 1)) for ids in tokens]


def seen_by(pack: Pack, index: int) -> list[int]:
    return [k for k in range(index + 1) if index < pack.ends[k]]


def packs(sequences: list[TokenSequence], limit: int) -> list[tuple[list[TokenSequence], Pack]]:
    """All packs of all groups, as a runner with one cached prefix goes through them."""
    found, cached = [], np.zeros(0, dtype=np.int64)
    for group in groups(sequences):
        while group:
            same = cached[: len(group[0].ids)] == group[0].ids[: len(cached)]
            pack = next_pack(group, int(same.argmin()) if not same.all() else len(same), limit)
            found.append((group[: pack.count], pack))
            if pack.shared > len(cached) or not same.all():
                cached = group[0].ids[: pack.shared]
            group = group[pack.count :]
    return found


@given(ROWS, st.integers(0, 12), st.integers(1, 40))
def test_each_token_sees_only_its_own_sequence(tokens: list[tuple[int, ...]], needed: int, limit: int) -> None:
    for sequences, pack in packs(sorted_sequences(rows_of(tokens, needed)), limit):
        for sequence, path in zip(sequences, pack.token_indices, strict=True):
            assert pack.shared <= sequence.first, "hidden states of cached tokens are not there"
            assert sequences[0].ids[: pack.shared].tolist() == sequence.ids[: pack.shared].tolist()
            assert pack.ids[path].tolist() == sequence.ids[pack.shared :].tolist()
            assert pack.depths[path].tolist() == list(range(pack.shared, len(sequence.ids)))
            for place, index in enumerate(path):
                assert seen_by(pack, int(index)) == path[: place + 1].tolist()


@given(ROWS, st.integers(0, 12), st.integers(1, 40))
def test_packs_hold_every_sequence_once_within_the_limit(
    tokens: list[tuple[int, ...]], needed: int, limit: int
) -> None:
    made = packs(sorted_sequences(rows_of(tokens, needed)), limit)
    assert all(pack.count == 1 or len(pack.ids) <= limit for _, pack in made)
    members = [member for sequences, _ in made for sequence in sequences for member in sequence.row_indices]
    assert sorted(members) == list(range(len(tokens)))


@given(ROWS)
def test_a_prefix_is_joined_to_its_sequence(tokens: list[tuple[int, ...]]) -> None:
    sequences = sorted_sequences(rows_of(tokens, 0))
    for sequence in sequences:
        assert all(tuple(sequence.ids[: len(tokens[k])]) == tokens[k] for k in sequence.row_indices)
    whole = [tuple(sequence.ids) for sequence in sequences]
    assert not any(one != other and other[: len(one)] == one for one in whole for other in whole)
    for before, sequence in pairwise(sequences):
        assert before.ids[: sequence.common].tolist() == sequence.ids[: sequence.common].tolist()
        assert before.ids[sequence.common] != sequence.ids[sequence.common]


def test_without_joining_each_row_is_a_sequence() -> None:
    sequences = sorted_sequences(rows_of([(1, 2, 3), (1, 2), (1, 2)], 1), join=False)
    assert [sequence.row_indices for sequence in sequences] == [(1,), (2,), (0,)]
    pack = next_pack(sequences, 0, 100)
    assert pack.ids.tolist() == [1, 2, 3]
    assert [path.tolist() for path in pack.token_indices] == [[0, 1], [0, 1], [0, 1, 2]]


def subject(number: int, questions: int) -> list[tuple[tuple[int, ...], int]]:
    """Rows behind 10 tokens that all have and 1000 of their subject: questions of 100 tokens with 4 options of 5."""
    few_shot = [7] * 10 + [number] * 1000
    asked = [(*few_shot, *range(1000 * q, 1000 * q + 100)) for q in range(1, questions + 1)]
    return [((*row, option, 8, 8, 8, 8), len(row) - 1) for row in asked for option in range(4)]


def test_a_few_shot_block_is_run_once_and_packs_are_full() -> None:
    rows = [row for number in range(1, 4) for row in subject(number, 20)]
    made = packs(sorted_sequences(rows), 256)
    computed = sum(len(pack.ids) for _, pack in made)
    assert computed <= 3 * 20 * (99 + 1 + 4 * 5) + 3 * 40, "each question once, each option once"
    assert {pack.shared for _, pack in made} == {1010}
    assert all(len(pack.ids) >= 120 for _, pack in made)


def test_a_group_that_fits_needs_no_run_for_its_prefix() -> None:
    (sequences, pack) = packs(sorted_sequences(subject(1, 1)), 2000)[0]
    assert (len(sequences), pack.shared, len(pack.ids)) == (4, 0, 1010 + 100 + 20)


def test_sequences_with_little_in_common_are_not_grouped() -> None:
    sequences = sorted_sequences([((1, *range(100, 120)), 0), ((1, *range(200, 220)), 0)])
    assert [len(group) for group in groups(sequences)] == [1, 1]
