"""The value of a metric over the samples of one model, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics.intervals import FEWEST, Floats, Interval, blocks, bootstrap, jackknife, percentiles, typical_values
from eval.metrics.proportion import wilson
from eval.protocols import Columns, CorpusMetric, ListMetric, Metric, RatioMetric, SampleMetric
from eval.result import Estimate

FEWEST_BY_JACKKNIFE = 20  # rows; losses use typical values, which need fewer
FEWEST_UNLIKE = 6  # rows that differ, between models or from the most common value
ROUNDING = 1e-12  # an interval of this relative width is a point, up to rounding
NO_SPREAD = "no interval: all rows are equal, the value is at the end of its scale, or it is not finite"


def estimate(metric: Metric, model: str, table: Columns) -> Estimate:
    """The metric of a model. table: its samples."""
    found = value(metric, table)
    if reason := without_value(metric, table):
        return Estimate(model, found, None, None, None, reason)
    if is_share(metric):
        interval: Interval | None = wilson(per_sample(metric, table))
    elif isinstance(metric, RatioMetric) and metric.is_count and found in (0.0, 1.0):
        rows = int((bottom_of(metric, table) > 0).sum())
        interval = wilson(np.full(rows, found)) if rows else None  # a row is a unit
    elif reason := too_few(metric, table):
        return Estimate(model, found, None, None, None, reason)
    elif isinstance(metric, RatioMetric) and is_loss(metric):
        ratio = typical_values(table[metric.top], bottom_of(metric, table)).interval
        interval = transform_interval(metric.of_ratio, ratio)
    elif isinstance(metric, ListMetric) and not metric.is_smooth:
        interval = percentiles(bootstrap([table[metric.column]], metric.function)[0])
    else:
        interval = jackknife(found, left_out(metric, table), metric.scale)
    if interval is None or not math.isfinite(interval.high) or is_point(interval):
        return Estimate(model, found, None, None, None, NO_SPREAD)
    return Estimate(model, found, interval.low, interval.high, interval.method)


def value(metric: Metric, table: Columns) -> float:
    """The metric over all samples of a table."""
    if without_value(metric, table):
        return math.nan
    if isinstance(metric, ListMetric):
        value_m = _sorted(metric, table)
        return float(metric.function(value_m, np.ones((1, len(value_m))))[0])
    return float(table[metric.name].mean()) if isinstance(metric, SampleMetric) else metric.of(table)


def _sorted(metric: ListMetric, table: Columns) -> Floats:
    return np.sort(np.concatenate([*table[metric.column]]))


def without_value(metric: Metric, table: Columns) -> str:
    """The reason why a metric has no value for these samples, else ""."""
    if isinstance(metric, RatioMetric) and metric.missing:
        if not {metric.top, *metric.bottom} <= table.keys():
            return metric.missing
        return "" if bottom_of(metric, table).any() else f"nothing to measure: no {' or '.join(metric.bottom)}"
    if isinstance(metric, ListMetric) and not any(map(len, table[metric.column])):
        return f"nothing to measure: no {metric.column.replace('_', ' ')}"
    return ""


def per_sample(metric: Metric, table: Columns) -> Floats:
    """The metric of each sample, which decides whether it is won or lost; for a corpus metric, of a corpus of one."""
    if isinstance(metric, SampleMetric):
        return table[metric.name]
    return np.array([value(metric, take(table, np.array([i]))) for i in range(row_count(table))])


def too_few(metric: Metric, table: Columns) -> str:
    """The reason why there are too few rows for an interval, else ""."""
    count = row_count(table)
    if isinstance(metric, RatioMetric):
        count = int((bottom_of(metric, table) > 0).sum())
    elif isinstance(metric, ListMetric):
        count = sum(map(bool, map(len, table[metric.column])))
    fewest = FEWEST if is_loss(metric) else FEWEST_BY_JACKKNIFE
    if isinstance(metric, (CorpusMetric, ListMetric)):
        fewest = max(fewest, metric.fewest)
    if count < fewest:
        return f"too few rows for an interval: {count} of at least {fewest}"
    if isinstance(metric, CorpusMetric):
        return metric.too_few(table) if metric.too_few else ""
    if isinstance(metric, ListMetric):
        return metric.too_few(_sorted(metric, table)) if metric.too_few else ""
    if isinstance(metric, SampleMetric):
        unlike = count - int(np.unique(table[metric.name], return_counts=True)[1].max())
        if 0 < unlike < FEWEST_UNLIKE:
            return f"too few rows for an interval: only {unlike} differ from the most common value"
    return ""


def left_out(metric: Metric, table: Columns) -> Floats:
    """The metric with each block of rows left out (jackknife)."""
    parts = blocks(row_count(table))
    if isinstance(metric, ListMetric) or (isinstance(metric, CorpusMetric) and not metric.of_sums):
        return _left_out_of_rows(metric, table, parts)
    starts = [part[0] for part in parts]

    def without(column: Floats) -> Floats:
        sums = np.add.reduceat(column, starts)  # sum before and after the block: total minus block would lose digits
        return _sum_before(sums) + _sum_before(sums[::-1])[::-1]

    if isinstance(metric, SampleMetric):
        return without(table[metric.name]) / without(np.ones(row_count(table)))
    if isinstance(metric, RatioMetric):
        top, bottom = without(table[metric.top]), without(bottom_of(metric, table))
        ratios = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return np.array([metric.of_ratio(ratio) for ratio in ratios.tolist()])
    sums = {key: without(column) for key, column in table.items()}
    return np.array([metric.of({key: column[k : k + 1] for key, column in sums.items()}) for k in range(len(parts))])


def _sum_before(sums: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(sums[:-1])])


def _left_out_of_rows(metric: Metric, table: Columns, parts: Sequence[NDArray[np.int64]]) -> Floats:
    """Computed once for blocks with equal content: of rows with labels, few are distinct."""
    everything, known = np.arange(row_count(table)), dict[tuple[bytes, ...], float]()
    found = []
    for out in parts:
        rows = tuple(column[out].tobytes() for column in table.values())
        if rows not in known:
            known[rows] = value(metric, take(table, np.delete(everything, out)))
        found.append(known[rows])
    return np.array(found)


def transform_interval(function: Callable[[float], float], interval: Interval) -> Interval:
    return Interval(function(interval.low), function(interval.high), interval.method)


def is_loss(metric: Metric) -> bool:
    """Whether the metric is a loss or derived from one: it has no upper bound."""
    return isinstance(metric, RatioMetric) and math.isinf(metric.scale.high)


def bottom_of(metric: RatioMetric, table: Columns) -> Floats:
    return np.asarray(np.sum([table[name] for name in metric.bottom], axis=0))


def is_share(metric: Metric) -> bool:
    return isinstance(metric, SampleMetric) and metric.is_share


def take(table: Columns, rows: NDArray[np.int64]) -> Columns:
    return {key: column[rows] for key, column in table.items()}


def row_count(table: Columns) -> int:
    return len(next(iter(table.values())))


def is_point(interval: Interval) -> bool:
    return math.isclose(interval.low, interval.high, rel_tol=ROUNDING)
