"""Metrics of each model with their uncertainty, and each model against the baseline on the same samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics.bootstrap import Bootstrap, Floats, Interval, bootstrap, bootstrap_sums
from eval.metrics.proportion import mcnemar, newcombe, paired_error, wilson
from eval.metrics.significance import detectable, holm
from eval.protocols import Columns, CorpusMetric, Metric, Sample, SampleMetric
from eval.result import Difference, Estimate, GroupResult, MetricResult, TaskResult

SAME = 1e-6  # relative; per-sample numbers closer than this are a tie, not rounding won and lost
SIGNIFICANT = 0.05
MOST_MOMENTS = 50_000_000  # numbers that the quick way may hold; beyond, the slow one

Tables = Mapping[str, Columns]  # of each model; the first is the baseline


def compare(metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]]) -> list[MetricResult]:
    """Every metric for every model (name -> samples of the same rows in the same order); the first is the baseline."""
    tables = tables_of(samples)
    parts = _parts_of(next(iter(samples.values())))
    baseline, *others = tables
    return [
        MetricResult(
            name=metric.name,
            level="sample" if isinstance(metric, SampleMetric) else "corpus",
            higher_is_better=metric.higher_is_better,
            is_share=_is_share(metric),
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
    """model -> for each sample +1 won, -1 lost or 0 tied against the baseline, by the first metric; {} without any."""
    if not metrics:
        return {}
    tables = tables_of(samples)
    baseline, *others = tables
    return {model: _won(metrics[0], tables[baseline], tables[model]).tolist() for model in others}


def corrected(tasks: Sequence[TaskResult]) -> list[TaskResult]:
    """The same results with `p_holm` for all their comparisons together."""
    tested = [d.p_value for t in tasks for m in t.metrics for d in m.differences if d.p_value is not None]
    waiting = iter(holm(tested))

    def with_holm(metric: MetricResult) -> MetricResult:
        differences = [
            d if d.p_value is None else dataclasses.replace(d, p_holm=next(waiting)) for d in metric.differences
        ]
        return dataclasses.replace(metric, differences=differences)

    return [dataclasses.replace(task, metrics=[with_holm(metric) for metric in task.metrics]) for task in tasks]


def value(metric: Metric, table: Columns) -> float:
    """The metric over all samples of the table."""
    return float(table[metric.name].mean()) if isinstance(metric, SampleMetric) else metric.of(table)


def per_sample(metric: Metric, table: Columns) -> Floats:
    """Each sample's own number, by which samples are won and lost; for a corpus metric each sample is a corpus."""
    if isinstance(metric, SampleMetric):
        return table[metric.name]
    return np.array([metric.of(_take(table, np.array([i]))) for i in range(_count(table))])


def tables_of(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Columns]:
    """model -> name of a number -> that number of each sample."""
    return {
        model: {key: np.array([sample.values[key] for sample in own]) for key in own[0].values}
        for model, own in samples.items()
    }


def _parts_of(samples: Sequence[Sample]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(group, name) -> rows of that part."""
    parts: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        for part in sample.groups.items():
            parts.setdefault(part, []).append(row)
    # A part that is the whole says nothing beyond it.
    return {part: np.array(rows) for part, rows in sorted(parts.items()) if len(rows) < len(samples)}


def _estimates(metric: Metric, tables: Tables) -> list[Estimate]:
    return [Estimate(model, value(metric, table), *_parts(_interval(metric, table))) for model, table in tables.items()]


def _interval(metric: Metric, table: Columns) -> Interval | None:
    if _is_share(metric):
        return wilson(per_sample(metric, table))
    found = _resampled(metric, table)
    return found.interval if found else None


def _resampled(metric: Metric, table: Columns) -> Bootstrap | None:
    """Of one model's number."""
    if isinstance(metric, SampleMetric):
        return _mean(table[metric.name])
    if metric.of_sums and _count(table) * len(table) ** 2 <= MOST_MOMENTS:
        return bootstrap_sums(lambda sums_rk: _of_sums(metric, table, sums_rk), _matrix(table))
    return bootstrap(lambda rows: metric.of(_take(table, rows)), _count(table))


def _resampled_difference(metric: Metric, base: Columns, other: Columns) -> Bootstrap | None:
    if isinstance(metric, SampleMetric):
        return _mean(other[metric.name] - base[metric.name])
    width = len(base)
    if metric.of_sums and _count(base) * (2 * width) ** 2 <= MOST_MOMENTS:
        return bootstrap_sums(
            lambda sums_rk: _of_sums(metric, other, sums_rk[:, width:]) - _of_sums(metric, base, sums_rk[:, :width]),
            np.concatenate([_matrix(base), _matrix(other)], axis=1),
        )
    return bootstrap(lambda rows: metric.of(_take(other, rows)) - metric.of(_take(base, rows)), _count(base))


def _mean(values: Floats) -> Bootstrap | None:
    table_nk = np.stack([values, np.ones_like(values)], axis=1)
    limits = (float(values.min()), float(values.max()))
    return bootstrap_sums(lambda sums_rk: sums_rk[:, 0] / sums_rk[:, 1], table_nk, limits)


def _of_sums(metric: CorpusMetric, table: Columns, sums_rk: Floats) -> Floats:
    """The metric of each row of sums."""
    return np.array([metric.of({key: row[k : k + 1] for k, key in enumerate(table)}) for row in sums_rk])


def _matrix(table: Columns) -> Floats:
    return np.stack(list(table.values()), axis=1)


def _difference(metric: Metric, model: str, base: Columns, other: Columns) -> Difference:
    if _is_share(metric):
        before, after = per_sample(metric, base), per_sample(metric, other)
        interval: Interval | None = newcombe(before, after) if len(before) > 1 else None
        p_value, error, test = mcnemar(before, after), paired_error(before, after), "McNemar, exact"
    elif found := _resampled_difference(metric, base, other):
        interval, p_value, error, test = found.interval, found.p_value, found.standard_error, "paired bootstrap"
    else:
        interval = None
    won = _won(metric, base, other)
    counts = (int((won == 1).sum()), int((won == -1).sum()), int((won == 0).sum()))
    change = value(metric, other) - value(metric, base)
    if interval is None:
        return Difference(model, change, None, None, None, *counts, "not tested")
    verdict = _verdict(interval, p_value, metric.higher_is_better)
    least = detectable(error) if error > 0 else None  # where no sample differs, nothing is known of how they might
    return Difference(model, change, *_parts(interval), *counts, verdict, test, p_value, p_value, least)


def _won(metric: Metric, base: Columns, other: Columns) -> NDArray[np.int64]:
    before, after = per_sample(metric, base), per_sample(metric, other)
    gains = (after - before) * (1 if metric.higher_is_better else -1)
    threshold = SAME * np.abs(before)
    return (gains > threshold).astype(np.int64) - (gains < -threshold).astype(np.int64)


def _verdict(interval: Interval, p_value: float, higher_is_better: bool) -> str:
    """A difference needs both the interval and the test, which for shares are two methods."""
    if interval.low <= 0 <= interval.high or p_value >= SIGNIFICANT:
        return "no significant difference"
    return "better" if (interval.low > 0) == higher_is_better else "worse"


def _is_share(metric: Metric) -> bool:
    return isinstance(metric, SampleMetric) and metric.is_share


def _take(table: Columns, rows: NDArray[np.int64]) -> Columns:
    return {key: column[rows] for key, column in table.items()}


def _count(table: Columns) -> int:
    return len(next(iter(table.values())))


def _parts(interval: Interval | None) -> tuple[float | None, float | None, str | None]:
    """One without width, as of rows that are all equal, is none: nothing in them says how others would differ."""
    if interval is None or interval.low == interval.high:
        return None, None, None
    return interval.low, interval.high, interval.method
