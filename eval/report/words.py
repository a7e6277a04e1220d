"""Formats numbers and verdicts for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval.result import Difference, Estimate, MetricResult, Result, TaskResult
from zerotune.common.console import counted
from zerotune.common.metric_format import SCALES, Scale, plain

NONE = "-"


@dataclass(frozen=True)
class Sentence:
    """A verdict: what was compared, the verdict, and its uncertainty."""

    before: str
    verdict: str
    after: str = ""


def named(metric: MetricResult) -> str:
    """exact_match -> exact match."""
    return metric.name.replace("_", " ")


def about(task: TaskResult, metric: MetricResult) -> str:
    """Task and metric; a metric named like its task once."""
    return task.name if task.name == metric.name else f"{task.name}, {named(metric)}"


def titled(metric: MetricResult) -> str:
    """The metric's name, with its scale if that is not obvious: bleu (0-100)."""
    label = scale_of(metric).label
    return f"{named(metric)} ({label})" if label else named(metric)


def scale_of(metric: MetricResult) -> Scale:
    """The scale of a metric."""
    return SCALES[metric.scale]


def number(metric: MetricResult, value: float | None) -> str:
    """A value of the metric; of one without value a dash."""
    if value is not None and math.isnan(value):
        return NONE
    return scale_of(metric).number(value)


def of_row(metric: MetricResult, value: float) -> str:
    """The value of a single row; 1 or 0 for shares."""
    return plain(value) if metric.is_share else number(metric, value)


def with_interval(metric: MetricResult, found: Estimate) -> str:
    """value [low, high]"""
    if found.low is None or found.high is None:
        return number(metric, found.value)
    low, high = (number(metric, end).removesuffix(" %") for end in (found.low, found.high))
    return f"{number(metric, found.value)} [{low}, {high}]"


def change(metric: MetricResult, value: float) -> str:
    """A signed difference: of shares in percentage points, of perplexities as a factor."""
    if math.isnan(value):
        return NONE
    return scale_of(metric).change(value)


def unit(metric: MetricResult) -> str:
    """The unit of a difference."""
    return scale_of(metric).unit


def change_with_interval(metric: MetricResult, found: Difference) -> str:
    """+value [low, high] and its unit."""
    if found.low is None or found.high is None:
        return change(metric, found.value) + unit(metric)
    ends = f"[{change(metric, found.low)}, {change(metric, found.high)}]"
    return f"{change(metric, found.value)} {ends}{unit(metric)}"


def probability(p_value: float | None) -> str:
    """A p-value with two significant digits, or "< 0.001"."""
    if p_value is None:
        return ""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}" if p_value < 0.995 else "1"


def detectable(metric: MetricResult, found: Difference) -> str:
    """The smallest detectable difference, with its unit."""
    if found.detectable is None:
        return ""
    return change(metric, found.detectable).removeprefix("+") + unit(metric)


def readable(value: Any) -> str:
    """A value of a sample as text; a list of objects (the turns of a dialogue) line by line, others as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, Mapping) for part in value):
        lines = ["\n".join(f"{name}: {readable(inner)}" for name, inner in part.items()) for part in value]
        return "\n\n".join(f"{number}. {text}" for number, text in enumerate(lines, start=1))
    return json.dumps(value, ensure_ascii=False, default=str)


def sentences(result: Result) -> list[Sentence]:
    """One sentence for each comparison; for each metric if there is only one model."""
    found = [(task, metric) for task in result.tasks for metric in task.metrics]
    if len(result.models) > 1:
        several = len(result.models) > 2
        return [_compared(task, metric, change, several) for task, metric in found for change in metric.differences]
    return [
        Sentence(f"{about(task, metric)}: ", with_interval(metric, estimate), f" over {counted(task.samples, 'row')}")
        for task, metric in found
        for estimate in metric.estimates
    ]


def _compared(task: TaskResult, metric: MetricResult, found: Difference, several: bool) -> Sentence:
    after = next(estimate for estimate in metric.estimates if estimate.model == found.model)
    values = f"{number(metric, metric.estimates[0].value)} -> {number(metric, after.value)}"
    before = f"{about(task, metric)}: {values}{f' ({found.model})' if several else ''}, "
    if found.p_value is None:
        return Sentence(before, found.verdict, f": {found.reason}" if found.reason else "")
    p = probability(found.p_value)
    test = f"{change_with_interval(metric, found)}, p {p if p.startswith('<') else f'= {p}'}"
    if found.verdict != "no significant difference":
        return Sentence(before, found.verdict, f": {test}; {_counts(found)}")
    if found.detectable is None or not (found.won or found.lost or found.value):
        return Sentence(before, found.verdict, f": the same on {counted(task.samples, 'row')}")
    what = "a change by less than" if scale_of(metric).is_ratio else "a difference below"
    power = f"with {counted(task.samples, 'row')} {what} {detectable(metric, found)} would not be detected"
    return Sentence(before, found.verdict, f" ({test}); {power}")


def _counts(found: Difference) -> str:
    return f"{counted(found.won, 'row')} won, {found.lost:,} lost, {found.tied:,} tied"


def multiplicity(result: Result) -> str:
    """Which differences remain significant after correction for multiple comparisons; empty for fewer than two."""
    compared = list(comparisons(result))
    significant = [c for c in compared if c[2].verdict in ("better", "worse")]
    if len(compared) < 2 or not significant:
        return ""
    kept = [c for c in significant if c[2].p_holm is not None and c[2].p_holm < 0.05]
    lead = f"{len(compared)} comparisons were made; after correction for their number (Holm), "
    if len(kept) == len(significant):
        return lead + f"all {len(kept)} differences remain." if len(kept) > 1 else lead + "the difference remains."
    if not kept:
        return lead + "none of the differences remains."
    lost = [c for c in significant if c not in kept]
    several = len(result.models) > 2
    fewer = min(kept, lost, key=len)
    names = [about(task, metric) + (f" ({found.model})" if several else "") for task, metric, found in fewer]
    if fewer is kept:
        return lead + f"these remain: {'; '.join(names)}."
    return lead + f"{len(kept)} of {len(significant)} differences remain, not these: {'; '.join(names)}."


def comparisons(result: Result) -> Iterator[tuple[TaskResult, MetricResult, Difference]]:
    """All tested differences."""
    for task in result.tasks:
        for metric in task.metrics:
            for difference in metric.differences:
                if difference.p_value is not None:
                    yield task, metric, difference
