"""Scores and statistics of `eval.metrics`: pure functions against tables, libraries and simulation."""

from __future__ import annotations

import math
import time
import unicodedata
from difflib import SequenceMatcher

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.metrics.exact_match import exact_match, normalise
from eval.metrics.perplexity import BITS_PER_BYTE, PERPLEXITY, perplexity_of, windows
from eval.metrics.proportion import mcnemar, newcombe, paired_error, wilson
from eval.metrics.significance import detectable, holm
from eval.metrics.similarity import similarity

SAME = [
    ("北京。", "北京"),
    ("《红楼梦》", "红楼梦"),
    ("北京、上海，广州！", "北京 上海 广州"),
    ("答案：“四十二”", "答案四十二"),
    ("ＡＢＣ１２３", "abc123"),
    ("３．５", "3.5"),
    ("Paris", "PARIS."),
    ("the Eiffel Tower", "Eiffel tower"),
    ("An apple", "a apple"),
    ("  two   words\n", "two words"),
    ("don't", "dont"),
    ("U.S.", "us"),
    ("well-known", "well known"),
    ("**42**", "`42`"),
    ("1,000,000", "1000000"),
    ("\u22125", "-5"),
    ("Straße", "STRASSE"),
    ("使用 Python 编程", "使用python编程"),
    ("A", "a."),
    ("", "  "),
]
DIFFERENT = [
    ("北京", "南京"),
    ("3.5", "35"),
    ("-5", "5"),
    ("10-20", "1020"),
    ("1/2", "12"),
    ("A", "the"),
    ("A", ""),
    ("?", "!"),
    ("therapist", "rapist"),
    ("1,00", "1.00"),
    ("new york", "newyork"),
]


@pytest.mark.parametrize(("prediction", "reference"), SAME)
def test_same_answers(prediction: str, reference: str) -> None:
    assert exact_match(prediction, reference) == exact_match(reference, prediction) == 1.0


@pytest.mark.parametrize(("prediction", "reference"), DIFFERENT)
def test_different_answers(prediction: str, reference: str) -> None:
    assert exact_match(prediction, reference) == exact_match(reference, prediction) == 0.0


@given(
    st.text(
        alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("a 的，。.-0９'`the")), max_size=30
    )
)
def test_normalising_is_idempotent_and_keeps_something(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert bool(once) == bool(unicodedata.normalize("NFKC", text).strip())


EDITED = st.text(alphabet="ab 的", max_size=40)


@given(start=EDITED, one=EDITED, other=EDITED, end=EDITED)
def test_similarity_is_difflibs(start: str, one: str, other: str, end: str) -> None:
    texts = [normalise(start + one + end), normalise(start + other + end)]
    assert similarity(*texts) == SequenceMatcher(None, *texts, autojunk=False).ratio()
    assert similarity(one, other) == SequenceMatcher(None, normalise(one), normalise(other), autojunk=False).ratio()


def test_similarity_of_long_answers_takes_no_time() -> None:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("etaoinshrdlu"), size=5)) for _ in range(600)]
    edited = [word if draw.random() < 0.7 else "other" for word in words]
    start = time.perf_counter()
    assert 0.7 < similarity(" ".join(words), " ".join(edited)) < 0.9
    assert similarity("a" * 3000, "ab" * 1500) == 2 * 1500 / 6000  # for what a lost model says difflib takes minutes
    assert time.perf_counter() - start < 10


@given(
    length=st.integers(1, 60),
    first=st.integers(1, 60),
    size=st.integers(2, 20),
    stride=st.integers(1, 19),
)
def test_windows_score_every_token_once(length: int, first: int, size: int, stride: int) -> None:
    stride = min(stride, size - 1)
    scored = []
    for number, (start, scored_from, end) in enumerate(windows(length, first, size, stride)):
        assert 0 <= start < scored_from < end <= length
        assert end - start <= size
        assert number == 0 or start == 0 or scored_from - start >= size - stride
        scored += range(scored_from, end)
    assert scored == list(range(first, length))


def test_a_text_within_the_window_is_one_window() -> None:
    assert list(windows(length=8, first=1, size=8, stride=4)) == [(0, 1, 8)]


def test_perplexity_is_over_all_tokens() -> None:
    columns = {"nll": np.array([2.0, 12.0]), "tokens": np.array([1.0, 3.0]), "bytes": np.array([4.0, 12.0])}
    assert PERPLEXITY.of(columns) == pytest.approx(math.exp(14 / 4))
    assert BITS_PER_BYTE.of(columns) == pytest.approx(14 / math.log(2) / 16)
    assert PERPLEXITY.of({"nll": np.array([1e6]), "tokens": np.array([1.0])}) == math.inf
    assert math.isnan(perplexity_of(math.nan))  # a broken loss must not pass for a bad one


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.04])
def test_intervals_of_small_shares_cover_95_times_of_100(share: float) -> None:
    """Summed over all outcomes with their probabilities, over sizes, as a single size hits or misses by its steps."""
    covered = []
    for count in range(150, 300, 10):
        for right in range(40):
            interval = wilson(np.repeat([1.0, 0.0], [right, count - right]))
            weight = float(stats.binom.pmf(right, count, share))
            covered.append(weight * (interval.low <= share <= interval.high))
    assert 0.93 <= sum(covered) / 15 <= 0.97


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 1), (12, 30), (40, 40)])
def test_mcnemars_mid_p_agrees_with_scipy(won: int, lost: int) -> None:
    before, after = np.repeat([0.0, 1.0, 1.0], [won, lost, 7]), np.repeat([1.0, 0.0, 1.0], [won, lost, 7])
    fewer, half = min(won, lost), stats.binom(won + lost, 0.5)
    expected = 2 * half.cdf(fewer) - half.pmf(fewer)  # the exact one, but for half of what was seen
    assert mcnemar(before, after) == pytest.approx(expected)


def test_holm_agrees_with_the_textbook() -> None:
    """Holm (1979): sorted p times how many are left, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_detectable_difference_is_found_four_times_of_five() -> None:
    draw, found, rounds, count = np.random.default_rng(0), 0, 600, 800
    errors = [paired_error(*((draw.random((2, count)) < 0.4).astype(float))) for _ in range(50)]
    gap = detectable(float(np.mean(errors)))
    for _ in range(rounds):
        before = (draw.random(count) < 0.4 - gap / 2).astype(float)
        after = (draw.random(count) < 0.4 + gap / 2).astype(float)
        found += mcnemar(before, after) < 0.05
    assert 0.72 <= found / rounds <= 0.86  # the exact test is a little shy


@pytest.mark.parametrize(("right", "count"), [(0, 40), (1, 12), (7, 20), (40, 40)])
def test_wilson_agrees_with_scipy(right: int, count: int) -> None:
    interval = wilson(np.repeat([1.0, 0.0], [right, count - right]))
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("before", "after", "shared"), [(0.1, 0.3, 0.5), (0.5, 0.5, 0.8), (0.02, 0.9, 0.0)])
def test_newcombe_covers_the_difference(before: float, after: float, shared: float) -> None:
    """shared: how often both models' outcomes come from the same luck."""
    draw, inside, rounds, count = np.random.default_rng(1), 0, 2000, 40
    for _ in range(rounds):
        luck = draw.random(count)
        other = np.where(draw.random(count) < shared, luck, draw.random(count))
        interval = newcombe((luck < before).astype(float), (other < after).astype(float))
        inside += interval.low <= after - before <= interval.high
    assert 0.92 <= inside / rounds <= 1.0


def test_newcombe_of_all_won_is_wide_for_few_samples() -> None:
    few, many = (newcombe(np.zeros(n), np.ones(n)) for n in (4, 400))
    assert few.low < 0.5 < many.low
    assert few.high == many.high == pytest.approx(1.0)


def test_pairing_narrows_the_interval() -> None:
    before = np.array([1.0, 0.0] * 20)
    paired, crossed = newcombe(before, before.copy()), newcombe(before, 1 - before)
    assert paired.high - paired.low < crossed.high - crossed.low
