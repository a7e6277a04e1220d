"""Metrics of each model with their uncertainty, and each model against the baseline on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics.bootstrap import Interval, bootstrap
from eval.metrics.proportion import newcombe, wilson
from eval.protocols import Columns, Metric, Sample, SampleMetric
from eval.result import Difference, Estimate, GroupResult, MetricResult

SAME = 1e-6  # relative; per-sample numbers closer than this are a tie, not rounding won and lost


def compare(metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]]) -> list[MetricResult]:
    """Every metric for every model (name -> samples of the same rows in the same order); the first is the baseline."""
    tables = {model: _columns(own) for model, own in samples.items()}
    parts = _parts_of(next(iter(samples.values())))
    baseline, *others = tables
    return [
        MetricResult(
            name=metric.name,
            level="sample" if isinstance(metric, SampleMetric) else "corpus",
            higher_is_better=metric.higher_is_better,
            is_share=_is_share(metric),
            estimates=[_estimate(metric, model, table) for model, table in tables.items()],
            differences=[_difference(metric, model, tables[baseline], tables[model]) for model in others],
            groups=[
                GroupResult(
                    group, name, len(rows), [_estimate(metric, m, _take(table, rows)) for m, table in tables.items()]
                )
                for (group, name), rows in parts.items()
            ],
        )
        for metric in metrics
    ]


def value(metric: Metric, table: Columns) -> float:
    """The metric over all samples of the table."""
    return float(table[metric.name].mean()) if isinstance(metric, SampleMetric) else metric.of(table)


def per_sample(metric: Metric, table: Columns) -> NDArray[np.float64]:
    """Each sample's own number, by which samples are won and lost; for a corpus metric each sample is a corpus."""
    if isinstance(metric, SampleMetric):
        return table[metric.name]
    return np.array([metric.of(_take(table, np.array([i]))) for i in range(_count(table))])


def _parts_of(samples: Sequence[Sample]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(group, name) -> rows of that part."""
    parts: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        for part in sample.groups.items():
            parts.setdefault(part, []).append(row)
    # A part that is the whole says nothing beyond it.
    return {part: np.array(rows) for part, rows in sorted(parts.items()) if len(rows) < len(samples)}


def _columns(samples: Sequence[Sample]) -> Columns:
    return {key: np.array([sample.values[key] for sample in samples]) for key in samples[0].values}


def _estimate(metric: Metric, model: str, table: Columns) -> Estimate:
    interval = (
        wilson(per_sample(metric, table))
        if _is_share(metric)
        else bootstrap(lambda rows: value(metric, _take(table, rows)), _count(table))
    )
    low, high, method = _parts(interval)
    return Estimate(model, value(metric, table), low, high, method)


def _difference(metric: Metric, model: str, base: Columns, other: Columns) -> Difference:
    before, after = per_sample(metric, base), per_sample(metric, other)
    interval = (
        newcombe(before, after)
        if _is_share(metric)
        else bootstrap(lambda rows: value(metric, _take(other, rows)) - value(metric, _take(base, rows)), _count(base))
    )
    low, high, method = _parts(interval)
    gains = (after - before) * (1 if metric.higher_is_better else -1)
    threshold = SAME * np.abs(before)
    won, lost = int((gains > threshold).sum()), int((gains < -threshold).sum())
    change = value(metric, other) - value(metric, base)
    verdict = _verdict(interval, metric.higher_is_better)
    return Difference(model, change, low, high, method, won, lost, len(gains) - won - lost, verdict)


def _verdict(interval: Interval | None, higher_is_better: bool) -> str:
    if interval is None:
        return "not tested"
    if interval.low <= 0 <= interval.high:
        return "no significant difference"
    return "better" if (interval.low > 0) == higher_is_better else "worse"


def _is_share(metric: Metric) -> bool:
    return isinstance(metric, SampleMetric) and metric.is_share


def _take(table: Columns, rows: NDArray[np.int64]) -> Columns:
    return {key: column[rows] for key, column in table.items()}


def _count(table: Columns) -> int:
    return len(next(iter(table.values())))


def _parts(interval: Interval | None) -> tuple[float | None, float | None, str | None]:
    return (None, None, None) if interval is None else (interval.low, interval.high, interval.method)
