"""A picture of the metrics: one panel each, one bar per model with its 95 % interval."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from eval.files import cannot_write
from eval.result import MetricResult, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_WIDTH_INCHES, HEIGHT_INCHES = 3.2, 3.0
COLOURS = ("#bbbbbb", "#3b75af")  # the baseline, the others


def draw(result: Result, path: Path) -> bool:
    """Writes the PNG; False where there is no metric to draw."""
    panels = [(task.name, metric) for task in result.tasks for metric in task.metrics]
    if not panels:
        return False
    from matplotlib.figure import Figure  # heavy, and needs no display this way

    figure = Figure(figsize=(PANEL_WIDTH_INCHES * len(panels), HEIGHT_INCHES), layout="constrained")
    for axes, (task, metric) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, f"{task}: {metric.name.replace('_', ' ')}", metric)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _draw_panel(axes: Axes, title: str, metric: MetricResult) -> None:
    scale = 100.0 if metric.is_share else 1.0
    for place, found in enumerate(metric.estimates):
        low = found.value if found.low is None else found.low
        high = found.value if found.high is None else found.high
        ends = [[scale * max(found.value - low, 0.0)], [scale * max(high - found.value, 0.0)]]
        axes.bar([place], [scale * found.value], yerr=ends, capsize=4, width=0.6, color=COLOURS[min(place, 1)])
    axes.set_xticks(range(len(metric.estimates)), [e.model for e in metric.estimates], rotation=15)
    axes.set_title(title + (" [%]" if metric.is_share else ""), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
