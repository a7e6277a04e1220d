"""The difference of a metric between two models on the same samples, with its 95 % interval and test."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eval.estimates import (
    FEWEST_UNLIKE,
    ROUNDING,
    bottom_of,
    is_loss,
    is_point,
    is_share,
    left_out,
    per_sample,
    row_count,
    too_few,
    transform_interval,
    value,
    without_value,
)
from eval.metrics.intervals import (
    Change,
    Floats,
    Interval,
    bootstrap,
    bootstrap_change,
    jackknife_change,
    typical_values,
)
from eval.metrics.perplexity import perplexity_of
from eval.metrics.proportion import mcnemar, newcombe, paired_error
from eval.metrics.significance import detectable
from eval.protocols import Columns, ListMetric, Metric, RatioMetric, SampleMetric
from eval.result import Difference
from zerotune.common.metric_format import CORRELATION

SAME = 1e-6  # relative; per-sample values closer than this are tied
SIGNIFICANT = 0.05
NO_DIFFERENCE = "no significant difference"
NO_SPREAD_OF_CHANGE = "no test: all rows change equally, or both values are at an end of the scale"


def difference(metric: Metric, model: str, base: Columns, other: Columns) -> Difference:
    """`model` (its samples: other) minus the baseline (base)."""
    won = won_or_lost(metric, base, other)
    counts = (int((won == 1).sum()), int((won == -1).sum()), int((won == 0).sum()))
    change = metric.scale.between(value(metric, base), value(metric, other))
    if is_share(metric):
        return _share_difference(metric, model, change, counts, per_sample(metric, base), per_sample(metric, other))
    no_interval = partial(Difference, model, change, None, None, None, *counts)
    if why_not := incomparable(metric, base, other):
        return no_interval("not tested", reason=why_not)
    if _is_same(metric, base, other):
        return no_interval(NO_DIFFERENCE, _test(metric), 1.0, 1.0)
    reason = too_few(metric, base) or too_few(metric, other) or _too_few_differ(metric, base, other)
    found = None if reason else _change(metric, base, other)
    if reason or not math.isfinite(change):
        return no_interval("not tested", reason=reason or "not finite")
    if found is None:  # no spread: the change is the same whichever row is left out
        if not math.isclose(change, metric.scale.no_change, abs_tol=ROUNDING):
            return no_interval("not tested", reason=NO_SPREAD_OF_CHANGE)
        return no_interval(NO_DIFFERENCE, _test(metric), 1.0, 1.0)
    verdict = _verdict(found.interval, found.p_value, metric)
    return Difference(
        model, change, *_interval_fields(found.interval), *counts, verdict, _test(metric), found.p_value, found.p_value,
        _detectable(metric, found.standard_error),
    )  # fmt: skip


def incomparable(metric: Metric, base: Columns, other: Columns) -> str:
    """Why the metric says nothing about which model is better, else ""."""
    if reason := without_value(metric, base) or without_value(metric, other):
        return reason
    return metric.incomparable(base, other) if isinstance(metric, (SampleMetric, RatioMetric)) else ""


def won_or_lost(metric: Metric, base: Columns, other: Columns) -> NDArray[np.int64]:
    """For each sample +1 (won), -1 (lost) or 0 (tied)."""
    if incomparable(metric, base, other):
        return np.zeros(row_count(base), dtype=np.int64)
    before, after = per_sample(metric, base), per_sample(metric, other)
    with np.errstate(invalid="ignore"):  # infinity on both sides is a tie
        gains = (after - before) * (1 if metric.higher_is_better else -1)
    threshold = np.where(np.isfinite(before), SAME * np.abs(before), 0.0)
    return (gains > threshold).astype(np.int64) - (gains < -threshold).astype(np.int64)


def _share_difference(
    metric: Metric, model: str, change: float, counts: tuple[int, int, int], before: Floats, after: Floats
) -> Difference:
    if len(before) < 2:
        return Difference(model, change, None, None, None, *counts, "not tested", reason="too few rows: 1")
    interval, p_value = newcombe(before, after), mcnemar(before, after)
    verdict, least = _verdict(interval, p_value, metric), detectable(paired_error(before, after))
    return Difference(
        model, change, *_interval_fields(interval), *counts, verdict, "McNemar, mid-p", p_value, p_value, least
    )  # fmt: skip


def _change(metric: Metric, base: Columns, other: Columns) -> Change | None:
    """The difference with its interval; None without spread."""
    if isinstance(metric, RatioMetric) and is_loss(metric):
        return _ratio_change(metric, base, other)
    if isinstance(metric, ListMetric) and not metric.is_smooth:
        first_s, second_s = bootstrap([base[metric.column], other[metric.column]], metric.function)
        return bootstrap_change(second_s - first_s)
    before, after = (left_out(metric, table) for table in (base, other))
    values = value(metric, base), value(metric, other)
    if metric.scale.is_ratio:
        found = jackknife_change(math.log(values[1] / values[0]), np.log(after / before))
        return found and dataclasses.replace(found, interval=transform_interval(perplexity_of, found.interval))
    reach = metric.scale.high - metric.scale.low
    if metric.scale is CORRELATION and np.all(np.abs([*before, *after, *values]) < 1):
        return _correlation_change(values, before, after, reach)
    return jackknife_change(values[1] - values[0], after - before, reach)


def _correlation_change(values: tuple[float, float], before: Floats, after: Floats, reach: float) -> Change | None:
    """By Fisher's z, which stabilises the variance near 1; converted back by the slope between the two values."""
    first, second = np.arctanh(values).tolist()
    slope = (values[1] - values[0]) / (second - first) if second != first else 1 - values[0] ** 2
    found = jackknife_change(second - first, np.arctanh(after) - np.arctanh(before))
    if found is None:
        return None
    low, high = max(found.interval.low * slope, -reach), min(found.interval.high * slope, reach)
    return Change(Interval(low, high, found.interval.method), found.standard_error * slope, found.p_value)


def _ratio_change(metric: RatioMetric, base: Columns, other: Columns) -> Change | None:
    """Compare ratios (for perplexities, mean losses); with equal denominators, by the differences of the rows."""
    if np.array_equal(bottom := bottom_of(metric, base), bottom_of(metric, other)):
        found: Change | None = typical_values(other[metric.top] - base[metric.top], bottom)
    else:
        same = dataclasses.replace(metric, of_ratio=float)
        before, after = (left_out(same, table) for table in (base, other))
        found = jackknife_change(same.of(other) - same.of(base), after - before)
    return found and dataclasses.replace(found, interval=transform_interval(metric.of_ratio, found.interval))


def _is_same(metric: Metric, base: Columns, other: Columns) -> bool:
    """Whether both models have equal values on every row."""
    names = tuple(base)
    if isinstance(metric, SampleMetric):
        names = (metric.name,)
    elif isinstance(metric, RatioMetric):
        names = (metric.top, *metric.bottom)
    elif isinstance(metric, ListMetric):
        names = (metric.column,)
    return all(np.array_equal(base[name], other[name]) for name in names)


def _too_few_differ(metric: Metric, base: Columns, other: Columns) -> str:
    unlike = int((won_or_lost(metric, base, other) != 0).sum()) if isinstance(metric, SampleMetric) else FEWEST_UNLIKE
    return f"too few rows differ for a test: {unlike}" if 0 < unlike < FEWEST_UNLIKE else ""


def _detectable(metric: Metric, error: float) -> float | None:
    """The smallest detectable change, in units of the metric."""
    if not error > 0:
        return None
    least = detectable(error)
    if isinstance(metric, RatioMetric) and is_loss(metric):
        return metric.of_ratio(least)
    return perplexity_of(least) if metric.scale.is_ratio else least


def _test(metric: Metric) -> str:
    if isinstance(metric, ListMetric) and not metric.is_smooth:
        return "paired bootstrap"
    return "random signs" if is_loss(metric) else "paired jackknife"


def _verdict(interval: Interval, p_value: float, metric: Metric) -> str:
    """Significant only if both the interval and the test say so; for shares these are different methods."""
    if interval.low <= metric.scale.no_change <= interval.high or p_value >= SIGNIFICANT:
        return NO_DIFFERENCE
    return "better" if (interval.low > metric.scale.no_change) == metric.higher_is_better else "worse"


def _interval_fields(interval: Interval | None) -> tuple[float | None, float | None, str | None]:
    """(low, high, method); None for an interval without width or end, which says nothing about other rows."""
    if interval is None or is_point(interval) or not math.isfinite(interval.high):
        return None, None, None
    return interval.low, interval.high, interval.method
