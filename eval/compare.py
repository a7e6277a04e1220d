"""Computes metrics with confidence intervals, and compares each model with the baseline on the same samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.differences import difference, incomparable, won_or_lost
from eval.estimates import estimate, is_share, take
from eval.metrics.significance import holm
from eval.protocols import Columns, Metric, Sample, SampleMetric
from eval.result import Estimate, GroupResult, MetricResult, TaskResult

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
            is_share=is_share(metric),
            scale=metric.scale.name,
            estimates=_estimates(metric, tables),
            differences=[difference(metric, model, tables[baseline], tables[model]) for model in others],
            groups=[
                GroupResult(group, name, len(rows), _estimates(metric, {m: take(t, rows) for m, t in tables.items()}))
                for (group, name), rows in parts.items()
            ],
        )
        for metric in metrics
    ]


def outcomes(metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[int]]:
    """model -> for each sample +1 (won), -1 (lost) or 0 (tied) against the baseline, by the first metric
    that can be compared.
    """
    if not metrics:
        return {}
    tables = tables_of(samples)
    baseline, *others = tables
    return {model: _outcomes(metrics, tables[baseline], tables[model]) for model in others}


def _outcomes(metrics: Sequence[Metric], base: Columns, other: Columns) -> list[int]:
    chosen = next((metric for metric in metrics if not incomparable(metric, base, other)), metrics[0])
    found: list[int] = won_or_lost(chosen, base, other).tolist()
    return found


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


def tables_of(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Columns]:
    """model -> name of a value -> that value of each sample."""
    return {
        model: {key: np.array([sample.values[key] for sample in own]) for key in own[0].values}
        | {key: column_of([sample.lists[key] for sample in own]) for key in own[0].lists}
        for model, own in samples.items()
    }


def column_of(lists: Sequence[Sequence[float]]) -> Any:
    """[n] of objects: the list of each sample."""
    column = np.empty(len(lists), dtype=object)
    for row, numbers in enumerate(lists):
        column[row] = numbers
    return column


def _parts_of(samples: Sequence[Sample]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(group, name) -> rows of that part; a part with all rows is left out."""
    parts: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        for part in sample.groups.items():
            parts.setdefault(part, []).append(row)
    return {part: np.array(rows) for part, rows in sorted(parts.items()) if len(rows) < len(samples)}


def _estimates(metric: Metric, tables: Tables) -> list[Estimate]:
    return [estimate(metric, model, table) for model, table in tables.items()]
