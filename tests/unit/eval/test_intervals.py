"""Intervals and tests of `eval.compare`: by hand, against scipy, within the limits of every scale, agreeing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.compare import compare
from eval.estimates import left_out
from eval.metrics.intervals import FEWEST, jackknife, jackknife_change, typical_values
from eval.metrics.perplexity import BITS_PER_BYTE, PERPLEXITY, PERPLEXITY_PER_WORD
from eval.names import file_names, model_names, shortest
from eval.protocols import Metric, Sample, SampleMetric
from eval.result import MetricResult
from eval.run_task import with_short_corpus_names
from eval.tasks import TASKS
from zerotune.common.metric_format import CORRELATION, HUNDRED, POSITIVE, SCALES, SHARE, UNBOUNDED, percent, plain
from zerotune.common.metric_format import PERPLEXITY as FROM_ONE

TEXTS = (PERPLEXITY, BITS_PER_BYTE, PERPLEXITY_PER_WORD)


def results(metrics: Any, *models: list[dict[str, float]]) -> list[MetricResult]:
    samples = {f"m{k}": [Sample(str(row), values) for row, values in enumerate(own)] for k, own in enumerate(models)}
    return compare(metrics, samples)


def texts(draw: np.random.Generator, count: int, gain: float = 0.0, spread: float = 0.3) -> list[dict[str, float]]:
    """Rows of the same texts at every call; the losses are drawn."""
    of_text = np.random.default_rng(count)
    tokens = np.ceil(of_text.lognormal(3, 1, size=count))
    nll = tokens * np.maximum(of_text.gamma(4, 0.8, size=count) - gain + draw.normal(0, spread, size=count), 0)
    return [
        {"nll": a, "tokens": b, "bytes": 4 * b + k % 9, "words": b}
        for k, (a, b) in enumerate(zip(nll, tokens, strict=True))
    ]


def test_typical_values_by_hand() -> None:
    """Of eight rows all 255 subsets: the sixth lowest and the sixth highest, as 6 of 256 are still below 2.5 %."""
    top, bottom = np.array([3.0, 1, 4, 1, 5, 9, 2, 6]), np.array([1.0, 2, 1, 2, 3, 3, 1, 4])
    subsets = [list(s) for n in range(1, 9) for s in itertools.combinations(range(8), n)]
    ratios = sorted(top[s].sum() / bottom[s].sum() for s in subsets)
    found = typical_values(top, bottom)
    assert (found.interval.low, found.interval.high) == pytest.approx((ratios[5], ratios[-6]))
    assert found.p_value == 2 / 256  # all rows are above 0


def test_the_test_of_losses_is_scipys_permutation_of_signs() -> None:
    top = np.array([0.3, -0.1, 0.9, 0.2, -0.2, 0.7, 0.4, 0.1, 0.6])
    expected = stats.permutation_test((top,), lambda x, axis: x.sum(axis=axis), permutation_type="samples")
    assert typical_values(top, np.ones(9)).p_value == pytest.approx(expected.pvalue)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=40)
    left_out = (values.sum() - values) / 39
    found = jackknife(values.mean(), left_out, UNBOUNDED)
    expected = stats.ttest_1samp(values, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert jackknife_change(values.mean(), left_out).p_value == pytest.approx(expected.pvalue)


def test_a_perplexity_of_twelve_rows_has_an_interval_above_1() -> None:
    """One of them far worse than the others, as where a report once said 33.5 [-3.8, 93.7]."""
    losses = [1.2, 1.6, 1.9, 2.0, 2.2, 2.4, 2.8, 3.0, 3.3, 3.6, 4.4, 6.9]
    rows = [{"nll": 20 * loss, "tokens": 20.0, "words": 15.0, "bytes": 80.0} for loss in losses]
    (found,) = results((PERPLEXITY,), rows)
    assert found.estimates[0].method == "typical values"
    assert 1 < found.estimates[0].low < found.estimates[0].value < found.estimates[0].high


@settings(max_examples=60, deadline=None)
@given(count=st.integers(FEWEST, 40), seed=st.integers(0, 9999), gain=st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3]))
def test_perplexity_and_bits_per_byte_always_agree(count: int, seed: int, gain: float) -> None:
    """Also where a verdict hangs by a hair: what is tested is the loss, whatever it is divided by."""
    draw = np.random.default_rng(seed)
    found = results(TEXTS, texts(draw, count), texts(draw, count, gain))
    changes = [metric.differences[0] for metric in found]
    assert len({(change.verdict, change.p_value) for change in changes}) == 1
    for metric, change in zip(found, changes, strict=True):
        nothing = SCALES[metric.scale].no_change
        assert (change.p_value < 0.05) == (not change.low <= nothing <= change.high)
        assert (change.value > nothing) == (metric.estimates[1].value > metric.estimates[0].value)


def test_perplexities_are_compared_by_their_ratio() -> None:
    draw = np.random.default_rng(3)
    perplexity, bits, _ = results(TEXTS, texts(draw, 60), texts(draw, 60, gain=0.4))
    change = perplexity.differences[0]
    assert change.value == pytest.approx(perplexity.estimates[1].value / perplexity.estimates[0].value)
    assert 0 < change.low < change.value < change.high < 1
    assert change.verdict == "better"
    assert bits.differences[0].value == pytest.approx(bits.estimates[1].value - bits.estimates[0].value)
    assert 1 < change.detectable < 1.5


def test_models_that_count_tokens_otherwise_are_compared_by_bytes() -> None:
    """Of which they may score a few less, those of the first token."""
    draw = np.random.default_rng(4)
    one, other = texts(draw, 60), texts(draw, 60, gain=0.4)
    other = [row | {name: row[name] + 1 + k % 3 for name in ("tokens", "bytes")} for k, row in enumerate(other)]
    perplexity, bits, _ = results(TEXTS, one, other)
    assert perplexity.differences[0].verdict == "not tested"
    change = bits.differences[0]
    assert change.value == pytest.approx(bits.estimates[1].value - bits.estimates[0].value)
    assert change.low < change.value < change.high
    assert change.verdict == "better"


LIMITED = {
    "share": (SHARE, st.floats(0, 1)), "0-100": (HUNDRED, st.floats(0, 100)),
    "-1 to 1": (CORRELATION, st.floats(-1, 1)), "positive": (POSITIVE, st.floats(0, 1e6)),
    "perplexity": (FROM_ONE, st.floats(1, 1e6)),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITED)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), count=st.integers(1, 60))
def test_no_interval_leaves_the_scale(name: str, data: Any, count: int) -> None:
    scale, values = LIMITED[name]
    metric = SampleMetric("x", higher_is_better=True, scale=scale)
    made = st.lists(st.one_of(values, st.sampled_from([1.0, 1.0])), min_size=count, max_size=count)
    (found,) = results((metric,), *([{"x": value} for value in data.draw(made)] for _ in range(2)))
    for estimate in found.estimates:
        if estimate.low is None:
            assert estimate.reason
        else:
            assert scale.low <= estimate.low <= estimate.value <= estimate.high <= scale.high
    change = found.differences[0]
    if change.low is not None:
        low, high = (0, math.inf) if scale.is_ratio else (scale.low - scale.high, scale.high - scale.low)
        assert low <= change.low <= change.high <= high


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 12)), min_size=1, max_size=50))
def test_no_perplexity_is_below_1(rows: list[tuple[int, float]]) -> None:
    made = [{"nll": n * loss, "tokens": float(n), "bytes": 3.0 * n, "words": float(n)} for n, loss in rows]
    for metric in results(TEXTS, made):
        least = SCALES[metric.scale].low
        assert all(end is None or end >= least for end in (metric.estimates[0].low, metric.estimates[0].value))


def test_few_rows_have_no_interval_and_the_reason_is_told() -> None:
    score = SampleMetric("x", higher_is_better=True)
    (found,) = results((score,), [{"x": k / 10} for k in range(9)], [{"x": k / 11} for k in range(9)])
    assert found.estimates[0].low is None
    assert found.estimates[0].reason == "too few rows for an interval: 9 of at least 20"
    assert (found.differences[0].verdict, found.differences[0].p_value) == ("not tested", None)
    (found,) = results((score,), [{"x": 0.1}] * 30, [{"x": 0.1}] * 28 + [{"x": 0.9}] * 2)
    assert found.differences[0].reason == "too few rows for an interval: only 2 differ from the most common value"
    rows = [{"gold": float(k > 27), "predicted": 0.0} for k in range(30)]
    (found, _) = results([m for m in TASKS["sequence_classification"].metrics if m.name != "accuracy"], rows)
    assert found.estimates[0].reason == "too few rows of a label for an interval: 2 of at least 10"


def test_from_one_end_of_the_scale_to_the_other_is_not_called_no_difference() -> None:
    """No row left out changes either value, so there is no test; but a difference there is."""
    score = SampleMetric("score", higher_is_better=True)
    (found,) = results([score], [{"score": 0.0}] * 20, [{"score": 1.0}] * 20)
    change = found.differences[0]
    assert (change.value, change.verdict, change.p_value) == (1.0, "not tested", None)
    assert change.reason is not None
    assert "end of the scale" in change.reason


@pytest.mark.parametrize("metric", TEXTS)
def test_rows_that_are_all_equal_have_no_interval(metric: Metric) -> None:
    """Not even one as wide as rounding."""
    counts = np.random.default_rng(0).integers(5, 300, size=20).astype(float)
    same, less = (
        [{"nll": n * loss, **dict.fromkeys(("tokens", "bytes", "words"), n)} for n in counts] for loss in (3, 2.9)
    )
    (found,) = results([metric], same, less)
    assert all(estimate.low is None and estimate.reason for estimate in found.estimates)
    assert found.differences[0].low is None
    assert found.differences[0].verdict == "better"


def test_every_metric_of_every_task_has_a_scale() -> None:
    named: dict[str, Metric] = {metric.name: metric for task in TASKS.values() for metric in task.metrics}
    for name, scale in (
        ("perplexity", FROM_ONE), ("sentence_perplexity", FROM_ONE), ("bits_per_byte", POSITIVE), ("bleu", HUNDRED),
        ("chrf", HUNDRED), ("mcc", CORRELATION), ("pearson", CORRELATION), ("rmse", POSITIVE), ("margin", UNBOUNDED),
        ("f1", SHARE), ("rouge1", SHARE), ("accuracy", SHARE),
    ):  # fmt: skip
        assert named[name].scale is scale


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.832, "83.2 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.5, "50.0 %"), (0.0052, "0.52 %"), (1.26e-5, "0.0013 %"),
     (0.9996, "99.960 %"), (0.99, "99.0 %"), (0.995, "99.50 %"), (math.nan, "not finite")],
)  # fmt: skip
def test_shares_are_written_in_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.14159, "3.142"), (999.96, "1000"), (12345.6, "12,346"), (1.5e6, "1.5e+06"), (2e-5, "2e-05"),
     (0.0002, "0.0002"), (-0.5, "-0.5"), (math.inf, "not finite")],
)  # fmt: skip
def test_numbers_are_written_with_the_digits_that_count(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [(SHARE, 0.123, "+12.3"), (SHARE, -0.0004, "0.0"), (FROM_ONE, 0.823, "x0.823"), (FROM_ONE, 1.0042, "x1.004"),
     (POSITIVE, 0.25, "+0.25"), (HUNDRED, -1.5, "-1.5"), (HUNDRED, 0.0, "0")],
)  # fmt: skip
def test_changes_are_written_by_their_scale(scale: Any, value: float, text: str) -> None:
    assert scale.change(value) == text


def test_files_and_checkpoints_have_the_shortest_names_that_tell(tmp_path: Any) -> None:
    assert shortest(["/x/base", "/y/merged"]) == ["base", "merged"]
    assert shortest(["/x/one/merged", "/x/two/merged"]) == ["one/merged", "two/merged"]
    assert shortest(["/x/one", "/x/one"]) == ["one", "one #2"]
    assert file_names(["/data/in/test.jsonl", "/data/out/test.jsonl"]) == ["in/test", "out/test"]
    assert file_names(["/data/news.jsonl", "/data/news.txt"]) == ["news.jsonl", "news.txt"]
    assert file_names(["新闻.jsonl"]) == ["新闻"]
    folders = []
    for run, step, folder in (("runs/mix", 12, "a/merged"), ("runs/mix", 24, "b/merged"), ("", 0, "base")):
        folders.append(tmp_path / folder)
        folders[-1].mkdir(parents=True)
        if run:
            facts = f'{{"merge": {{"step": {step}}}, "config": {{"run": {{"folder": "{run}"}}}}}}'
            (folders[-1] / "run.json").write_text(facts)
    assert model_names([str(folder) for folder in folders]) == ["mix step 12", "mix step 24", "base"]
    twice = model_names([str(folders[0]), str(folders[0])])
    assert len(set(twice)) == 2
    assert all(name.startswith("mix step 12") for name in twice)


def test_corpora_are_called_by_what_tells_them_apart() -> None:
    samples = [Sample("1", {}, groups={"corpus": f"/very/long/{name}/test.jsonl"}) for name in ("in", "out")]
    named = with_short_corpus_names([*samples, Sample("2", {})])
    assert [one.groups.get("corpus") for one in named] == ["in/test", "out/test", None]


def perplexities(values: Any) -> list[dict[str, float]]:
    return [{"sentence_perplexity": value} for value in values]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken", [1e20, 1e40, 1e100, 1e160, 1e300, 1.7e308])
def test_one_row_of_no_use_spoils_no_comparison(broken: float) -> None:
    good = (10 + np.random.default_rng(0).random(24)).tolist()
    metric = next(metric for metric in TASKS["perplexity"].metrics if metric.name == "sentence_perplexity")
    for models in ([good, [*good[1:], broken]], [[*good[1:], broken], good]):
        found = results([metric], *map(perplexities, models))[0]
        (change,) = found.differences
        assert change.p_value == pytest.approx(0.328, abs=0.03)  # one row of 24 decides
        assert change.reason is None
        assert change.verdict == "no significant difference"
        ends = [end for end in (change.low, change.high) if end is not None]
        assert all(math.isfinite(end) and end >= 0 for end in ends)


def test_left_out_rows_are_no_difference_of_sums() -> None:
    """Of 1e20 and ones, the rest of the sum without 1e20 is the ones."""
    metric = next(metric for metric in TASKS["perplexity"].metrics if metric.name == "sentence_perplexity")
    table = {metric.name: np.array([1.0] * 20 + [1e20] + [1.0] * 3)}
    assert left_out(metric, table)[20] == 1.0


def test_a_perplexity_that_is_not_finite_loses() -> None:
    rows = [{"nll": 10.0 + k, "tokens": 5.0, "words": 4.0, "bytes": 20.0} for k in range(10)]
    worse = [{**rows[0], "nll": 1e6}, *rows[1:]]
    assert [(d.won, d.lost, d.tied) for d in results([PERPLEXITY], rows, worse)[0].differences] == [(0, 1, 9)]
    assert [(d.won, d.lost, d.tied) for d in results([PERPLEXITY], worse, rows)[0].differences] == [(1, 0, 9)]
    assert [(d.won, d.lost, d.tied) for d in results([PERPLEXITY], worse, worse)[0].differences] == [(0, 0, 10)]
