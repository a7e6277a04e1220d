"""Draws a study: validation curves of all trials, importances of parameters, parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from train.report.figures import BLUE, GREY, ORANGE, STYLE
from train.search.space import Parameter
from train.search.study import Record
from zerotune.common.metric_format import plain

SHORTEST = 14  # characters of a choice that are shown
CURVES = "Validation of all trials: the best in orange, those that were stopped dashed"
PARALLEL = "Parallel coordinates: the best in orange, then the darker the better"
LINES: Mapping[str, Any] = {"complete": "-", "pruned": "--", "failed": ":"}


def draw(
    records: Sequence[Record], best: Record, parameters: Sequence[Parameter], metric: str, sign: int,
    importances: Mapping[str, float], folder: Path,
) -> list[tuple[str, Path]]:  # fmt: skip
    """Write the figures. Returns (caption, file) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(STYLE):
        for name, caption, figure in (
            ("curves", CURVES, _curves(records, best, metric)),
            ("importances", "Importance of the parameters", _importances(importances)),
            ("parallel", PARALLEL, _parallel(records, best, parameters, metric, sign)),
        ):
            if figure is not None:
                figure.savefig(folder / f"{name}.png")
                plt.close(figure)
                drawn.append((caption, folder / f"{name}.png"))
    return drawn


def _curves(records: Sequence[Record], best: Record, metric: str) -> Figure:
    figure = plt.figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"validation {metric}")
    axes.set_xlabel("optimizer step")
    values = [value for record in records for value in record.validations.values()]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: plain(value)))
    for record in records:
        if not record.validations:
            continue
        is_best = record.number == best.number
        steps = sorted(record.validations)
        axes.plot(
            steps, [record.validations[step] for step in steps], LINES.get(record.state, "-"), marker=".",
            color=ORANGE if is_best else BLUE, alpha=1.0 if is_best else 0.4, linewidth=2.4 if is_best else 1.2,
            zorder=3 if is_best else 2, label=f"trial {record.number}: {plain(best.value or 0.0)}" if is_best else None,
        )  # fmt: skip
    axes.legend()
    return figure


def _importances(importances: Mapping[str, float]) -> Figure | None:
    if not importances:
        return None
    figure = plt.figure(figsize=(8, 0.9 + 0.45 * len(importances)), layout="constrained")
    axes = figure.subplots()
    names = sorted(importances, key=lambda name: importances[name])
    axes.barh(names, [importances[name] for name in names], color=BLUE)
    axes.set_xlabel("share of the importance")
    axes.grid(visible=False, axis="y")
    return figure


def _parallel(
    records: Sequence[Record], best: Record, parameters: Sequence[Parameter], metric: str, sign: int
) -> Figure | None:
    shown = [record for record in records if record.value is not None]
    if len(shown) < 2:
        return None
    figure = plt.figure(figsize=(max(6.0, 2.2 * (len(parameters) + 1)), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    order = sorted(shown, key=lambda record: sign * (record.value or 0.0))
    shade = mpl.colormaps["viridis"]
    columns = [([record.values[p.name] for record in shown], p.log, p.points if p.choices else ()) for p in parameters]
    columns.append(([record.value for record in shown], False, ()))
    heights = [_heights(*column) for column in columns]
    for record in shown:
        index, rank = shown.index(record), order.index(record) / max(len(order) - 1, 1)
        is_best = record.number == best.number
        axes.plot(
            range(len(heights)), [height[index] for height in heights], LINES.get(record.state, "-"),
            color=ORANGE if is_best else shade(rank), linewidth=2.6 if is_best else 1.2, zorder=3 - rank,
        )  # fmt: skip
    axes.set_xticks(range(len(heights)), [*(p.name.rpartition(".")[2] for p in parameters), metric])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for place, (values, _, choices) in enumerate(columns):
        axes.axvline(place, color=GREY, linewidth=0.8)
        _labels(axes, place, values, choices)
    return figure


def _heights(values: Sequence[Any], log: bool, choices: Sequence[Any]) -> list[float]:
    """From 0 to 1: of choices by their order, of numbers by their size."""
    if choices:
        return [choices.index(value) / max(len(choices) - 1, 1) for value in values]
    numbers = [math.log(value) if log else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _labels(axes: Axes, place: int, values: Sequence[Any], choices: Sequence[Any]) -> None:
    """The ends of an axis, or its choices."""
    if choices:
        ends = [(k / max(len(choices) - 1, 1), str(choice)) for k, choice in enumerate(choices)]
    else:
        ends = [(0.0, plain(min(values))), (1.0, plain(max(values)))]
    for height, text in ends:
        short = text if len(text) <= SHORTEST else text[: SHORTEST - 1] + "…"
        axes.annotate(short, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=9, va="center")
