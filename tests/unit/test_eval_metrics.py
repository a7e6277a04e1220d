"""Scores and statistics of `eval.metrics`: pure functions against tables, libraries and simulation."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.metrics.bootstrap import bootstrap
from eval.metrics.exact_match import exact_match, normalise
from eval.metrics.perplexity import bits_per_byte, perplexity, windows
from eval.metrics.proportion import newcombe, wilson

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
    assert perplexity(columns) == pytest.approx(math.exp(14 / 4))
    assert bits_per_byte(columns) == pytest.approx(14 / math.log(2) / 16)
    assert perplexity({"nll": np.array([1e6]), "tokens": np.array([1.0])}) == math.inf


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(1))
    assert ours is not None
    spread = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * spread)


def test_bootstrap_covers_a_perplexity() -> None:
    """Documents of uneven length: the true value is inside about 95 times of 100; an error of the method shows."""
    draw, inside, rounds = np.random.default_rng(0), 0, 120
    for _ in range(rounds):
        tokens = draw.integers(5, 50, size=60).astype(float)
        columns = {"nll": tokens * 2.0 + draw.normal(0, 0.5, 60) * tokens, "tokens": tokens}
        interval = bootstrap(lambda rows, c=columns: perplexity({k: v[rows] for k, v in c.items()}), 60, resamples=300)
        inside += interval.low <= math.exp(2.0) <= interval.high
    assert 0.89 <= inside / rounds <= 0.99


def test_bootstrap_of_one_sample_is_no_interval() -> None:
    assert bootstrap(lambda rows: 1.0, 1) is None


def test_bootstrap_of_equal_samples_has_no_width() -> None:
    interval = bootstrap(lambda rows: float(np.ones(5)[rows].mean()), 5)
    assert (interval.low, interval.high) == (1.0, 1.0)


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
