"""The overview table: every metric of every model, with an arrow for the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from eval.report import words
from eval.result import Difference, Estimate, MetricResult, Result

ARROWS = {"better": "▲", "worse": "▼", "no significant difference": "≈", "not tested": "·"}
LEGEND = "▲ better and ▼ worse than {}; ≈ no significant difference; · not tested"


@dataclass(frozen=True)
class Cell:
    """One model's value. verdict: as in `Difference`; empty for the baseline. about: the tooltip."""

    value: str
    arrow: str = ""
    verdict: str = ""
    change: str = ""
    about: str = ""


@dataclass(frozen=True)
class Line:
    """One metric. task: empty if equal to the line above. direction: "lower is better" or empty."""

    task: str
    metric: str
    direction: str
    cells: list[Cell]


def matrix(result: Result) -> list[Line]:
    """A line for each metric, a cell for each model."""
    lines = []
    for task in result.tasks:
        for place, metric in enumerate(task.metrics):
            changes = {change.model: change for change in metric.differences}
            cells = [_cell(metric, estimate, changes.get(estimate.model)) for estimate in metric.estimates]
            direction = "" if metric.higher_is_better else "lower is better"
            lines.append(Line("" if place else task.name, words.titled(metric), direction, cells))
    return lines


def legend(result: Result) -> str:
    """The meaning of the arrows; empty with a single model."""
    return LEGEND.format(result.models[0].name) if len(result.models) > 1 else ""


def _cell(metric: MetricResult, estimate: Estimate, found: Difference | None) -> Cell:
    value = words.number(metric, estimate.value)
    about = f"95 % interval: {words.with_interval(metric, estimate)}" if estimate.low is not None else ""
    if found is None:
        return Cell(value, about=about or estimate.reason or "")
    change = words.change(metric, found.value) + words.unit(metric)
    about = f"{found.verdict}: {words.change_with_interval(metric, found)}" if found.low is not None else found.verdict
    why = f" ({found.reason})" if found.reason else ""
    return Cell(value, ARROWS[found.verdict], found.verdict, change, about + why)
