"""Computes metrics with confidence intervals, and compares each model with the baseline on the same samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics.intervals import (
    FEWEST,
    Change,
    Floats,
    Interval,
    blocks,
    jackknife,
    jackknife_change,
    typical_values,
)
from eval.metrics.perplexity import perplexity_of
from eval.metrics.proportion import mcnemar, newcombe, paired_error, wilson
from eval.metrics.significance import detectable, holm
from eval.protocols import Columns, CorpusMetric, Metric, RatioMetric, Sample, SampleMetric
from eval.result import Difference, Estimate, GroupResult, MetricResult, TaskResult
from zerotune.common.metric_format import CORRELATION

SAME = 1e-6  # relative; per-sample values closer than this are tied
SIGNIFICANT = 0.05
FEWEST_BY_JACKKNIFE = 20  # rows; losses use typical values, which need fewer
NO_SPREAD = "no interval: all rows are equal, the value is at the end of its scale, or it is not finite"
NO_SPREAD_OF_CHANGE = "no test: all rows change equally, or both values are at an end of the scale"
ROUNDING = 1e-12  # an interval of this relative width is a point, up to rounding
NO_DIFFERENCE = "no significant difference"
FEWEST_UNLIKE = 6  # rows that differ, between models or from the most common value

Tables = Mapping[str, Columns]  # by model; the first is the baseline


def compare(metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]]) -> list[MetricResult]:
    """Compute every metric for every model and compare with the first, the baseline.

    samples: model -> its samples, for all models of the same rows in the same order.
    """
    tables = tables_of(samples)
    parts = _parts_of(next(iter(samples.values())))
    baseline, *others = tables
    return [
        MetricResult(
            name=metric.name,
            level="sample" if isinstance(metric, SampleMetric) else "corpus",
            higher_is_better=metric.higher_is_better,
            is_share=_is_share(metric),
            scale=metric.scale.name,
            estimates=_estimates(metric, tables),
            differences=[_difference(metric, model, tables[baseline], tables[model]) for model in others],
            groups=[
                GroupResult(group, name, len(rows), _estimates(metric, {m: _take(t, rows) for m, t in tables.items()}))
                for (group, name), rows in parts.items()
            ],
        )
        for metric in metrics
    ]


def outcomes(metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[int]]:
    """model -> for each sample +1 (won), -1 (lost) or 0 (tied) against the baseline, by the first metric."""
    if not metrics:
        return {}
    tables = tables_of(samples)
    baseline, *others = tables
    return {model: _outcomes(metrics[0], tables[baseline], tables[model]).tolist() for model in others}


def with_holm_correction(tasks: Sequence[TaskResult]) -> list[TaskResult]:
    """Set `p_holm`, the p-values corrected for all comparisons together."""
    tested = [d.p_value for t in tasks for m in t.metrics for d in m.differences if d.p_value is not None]
    adjusted = iter(holm(tested))

    def with_holm(metric: MetricResult) -> MetricResult:
        differences = [
            d if d.p_value is None else dataclasses.replace(d, p_holm=next(adjusted)) for d in metric.differences
        ]
        return dataclasses.replace(metric, differences=differences)

    return [dataclasses.replace(task, metrics=[with_holm(metric) for metric in task.metrics]) for task in tasks]


def value(metric: Metric, table: Columns) -> float:
    """The metric over all samples of a table."""
    return float(table[metric.name].mean()) if isinstance(metric, SampleMetric) else metric.of(table)


def per_sample(metric: Metric, table: Columns) -> Floats:
    """The metric of each sample, which decides whether it is won or lost; for a corpus metric, of a corpus of one."""
    if isinstance(metric, SampleMetric):
        return table[metric.name]
    return np.array([metric.of(_take(table, np.array([i]))) for i in range(_count(table))])


def tables_of(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Columns]:
    """model -> name of a value -> that value of each sample."""
    return {
        model: {key: np.array([sample.values[key] for sample in own]) for key in own[0].values}
        for model, own in samples.items()
    }


def _parts_of(samples: Sequence[Sample]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(group, name) -> rows of that part; a part with all rows is left out."""
    parts: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        for part in sample.groups.items():
            parts.setdefault(part, []).append(row)
    return {part: np.array(rows) for part, rows in sorted(parts.items()) if len(rows) < len(samples)}


def _estimates(metric: Metric, tables: Tables) -> list[Estimate]:
    return [_estimate(metric, model, table) for model, table in tables.items()]


def _estimate(metric: Metric, model: str, table: Columns) -> Estimate:
    found = value(metric, table)
    if _is_share(metric):
        interval: Interval | None = wilson(per_sample(metric, table))
    elif reason := _too_few(metric, table):
        return Estimate(model, found, None, None, None, reason)
    elif isinstance(metric, RatioMetric) and _is_unlimited(metric):
        interval = _transform_interval(
            metric.of_ratio, typical_values(table[metric.top], _bottom(metric, table)).interval
        )
    else:
        interval = jackknife(found, _left_out(metric, table), metric.scale)
    if interval is None or not math.isfinite(interval.high) or _is_point(interval):
        return Estimate(model, found, None, None, None, NO_SPREAD)
    return Estimate(model, found, interval.low, interval.high, interval.method)


def _too_few(metric: Metric, table: Columns) -> str:
    """The reason why there are too few rows for an interval, else ""."""
    count = int((_bottom(metric, table) > 0).sum()) if isinstance(metric, RatioMetric) else _count(table)
    fewest = FEWEST if _is_unlimited(metric) else FEWEST_BY_JACKKNIFE
    if isinstance(metric, CorpusMetric):
        fewest = max(fewest, metric.fewest)
    if count < fewest:
        return f"too few rows for an interval: {count} of at least {fewest}"
    if isinstance(metric, CorpusMetric):
        return metric.too_few(table) if metric.too_few else ""
    if isinstance(metric, SampleMetric):
        unlike = count - int(np.unique(table[metric.name], return_counts=True)[1].max())
        if 0 < unlike < FEWEST_UNLIKE:
            return f"too few rows for an interval: only {unlike} differ from the most common value"
    return ""


def _left_out(metric: Metric, table: Columns) -> Floats:
    """The metric with each block of rows left out (jackknife)."""
    parts = blocks(_count(table))
    if isinstance(metric, CorpusMetric) and not metric.of_sums:
        return _left_out_of_rows(metric, table, parts)
    starts = [part[0] for part in parts]

    def without(column: Floats) -> Floats:
        sums = np.add.reduceat(column, starts)  # sum before and after the block: total minus block would lose digits
        return _sum_before(sums) + _sum_before(sums[::-1])[::-1]

    if isinstance(metric, SampleMetric):
        return without(table[metric.name]) / without(np.ones(_count(table)))
    if isinstance(metric, RatioMetric):
        top, bottom = without(table[metric.top]), without(_bottom(metric, table))
        ratios = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return np.array([metric.of_ratio(ratio) for ratio in ratios.tolist()])
    sums = {key: without(column) for key, column in table.items()}
    return np.array([metric.of({key: column[k : k + 1] for key, column in sums.items()}) for k in range(len(parts))])


def _sum_before(sums: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(sums[:-1])])


def _left_out_of_rows(metric: CorpusMetric, table: Columns, parts: Sequence[NDArray[np.int64]]) -> Floats:
    """Computed once for blocks with equal content: of rows with labels, few are distinct."""
    everything, known = np.arange(_count(table)), dict[tuple[bytes, ...], float]()
    found = []
    for out in parts:
        rows = tuple(column[out].tobytes() for column in table.values())
        if rows not in known:
            known[rows] = metric.of(_take(table, np.delete(everything, out)))
        found.append(known[rows])
    return np.array(found)


def _transform_interval(function: Callable[[float], float], interval: Interval) -> Interval:
    return Interval(function(interval.low), function(interval.high), interval.method)


def _difference(metric: Metric, model: str, base: Columns, other: Columns) -> Difference:
    won = _outcomes(metric, base, other)
    counts = (int((won == 1).sum()), int((won == -1).sum()), int((won == 0).sum()))
    change = metric.scale.between(value(metric, base), value(metric, other))
    if _is_share(metric):
        return _share_difference(metric, model, change, counts, per_sample(metric, base), per_sample(metric, other))
    if _is_same(metric, base, other):
        return Difference(model, change, None, None, None, *counts, NO_DIFFERENCE, _test(metric), 1.0, 1.0)
    reason = _too_few(metric, base) or _too_few(metric, other) or _too_few_differ(metric, base, other)
    found = None if reason else _change(metric, base, other)
    if reason or not math.isfinite(change):
        return Difference(model, change, None, None, None, *counts, "not tested", reason=reason or "not finite")
    if found is None:  # no spread: the change is the same whichever row is left out
        if not math.isclose(change, metric.scale.no_change, abs_tol=ROUNDING):
            return Difference(model, change, None, None, None, *counts, "not tested", reason=NO_SPREAD_OF_CHANGE)
        return Difference(model, change, None, None, None, *counts, NO_DIFFERENCE, _test(metric), 1.0, 1.0)
    verdict = _verdict(found.interval, found.p_value, metric)
    return Difference(
        model, change, *_interval_fields(found.interval), *counts, verdict, _test(metric), found.p_value, found.p_value,
        _detectable(metric, found.standard_error),
    )  # fmt: skip


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
    if isinstance(metric, RatioMetric) and _is_unlimited(metric):
        return _ratio_change(metric, base, other)
    before, after = (_left_out(metric, table) for table in (base, other))
    values = value(metric, base), value(metric, other)
    if metric.scale.is_ratio:
        found = jackknife_change(math.log(values[1] / values[0]), np.log(after / before))
        return found and dataclasses.replace(found, interval=_transform_interval(perplexity_of, found.interval))
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
    if np.array_equal(bottom := _bottom(metric, base), _bottom(metric, other)):
        found: Change | None = typical_values(other[metric.top] - base[metric.top], bottom)
    else:
        same = dataclasses.replace(metric, of_ratio=float)
        before, after = (_left_out(same, table) for table in (base, other))
        found = jackknife_change(same.of(other) - same.of(base), after - before)
    return found and dataclasses.replace(found, interval=_transform_interval(metric.of_ratio, found.interval))


def _is_same(metric: Metric, base: Columns, other: Columns) -> bool:
    """Whether both models have equal values on every row."""
    names = tuple(base)
    if isinstance(metric, SampleMetric):
        names = (metric.name,)
    elif isinstance(metric, RatioMetric):
        names = (metric.top, *metric.bottom)
    return all(np.array_equal(base[name], other[name]) for name in names)


def _too_few_differ(metric: Metric, base: Columns, other: Columns) -> str:
    unlike = int((_outcomes(metric, base, other) != 0).sum()) if isinstance(metric, SampleMetric) else FEWEST_UNLIKE
    return f"too few rows differ for a test: {unlike}" if 0 < unlike < FEWEST_UNLIKE else ""


def _detectable(metric: Metric, error: float) -> float | None:
    """The smallest detectable change, in units of the metric."""
    if not error > 0:
        return None
    least = detectable(error)
    if isinstance(metric, RatioMetric) and _is_unlimited(metric):
        return metric.of_ratio(least)
    return perplexity_of(least) if metric.scale.is_ratio else least


def _test(metric: Metric) -> str:
    return "random signs" if _is_unlimited(metric) else "paired jackknife"


def _outcomes(metric: Metric, base: Columns, other: Columns) -> NDArray[np.int64]:
    before, after = per_sample(metric, base), per_sample(metric, other)
    with np.errstate(invalid="ignore"):  # infinity on both sides is a tie
        gains = (after - before) * (1 if metric.higher_is_better else -1)
    threshold = np.where(np.isfinite(before), SAME * np.abs(before), 0.0)
    return (gains > threshold).astype(np.int64) - (gains < -threshold).astype(np.int64)


def _verdict(interval: Interval, p_value: float, metric: Metric) -> str:
    """Significant only if both the interval and the test say so; for shares these are different methods."""
    if interval.low <= metric.scale.no_change <= interval.high or p_value >= SIGNIFICANT:
        return NO_DIFFERENCE
    return "better" if (interval.low > metric.scale.no_change) == metric.higher_is_better else "worse"


def _is_unlimited(metric: Metric) -> bool:
    """Whether the metric is a loss or derived from one."""
    return isinstance(metric, RatioMetric) and math.isinf(metric.scale.high)


def _bottom(metric: RatioMetric, table: Columns) -> Floats:
    return np.asarray(np.sum([table[name] for name in metric.bottom], axis=0))


def _is_share(metric: Metric) -> bool:
    return isinstance(metric, SampleMetric) and metric.is_share


def _take(table: Columns, rows: NDArray[np.int64]) -> Columns:
    return {key: column[rows] for key, column in table.items()}


def _count(table: Columns) -> int:
    return len(next(iter(table.values())))


def _is_point(interval: Interval) -> bool:
    return math.isclose(interval.low, interval.high, rel_tol=ROUNDING)


def _interval_fields(interval: Interval | None) -> tuple[float | None, float | None, str | None]:
    """(low, high, method); None for an interval without width or end, which says nothing about other rows."""
    if interval is None or _is_point(interval) or not math.isfinite(interval.high):
        return None, None, None
    return interval.low, interval.high, interval.method
