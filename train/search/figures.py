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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from eval.report.figure import drawable, fonts
from train.report.figures import BLUE, GREY, ORANGE, STYLE
from train.search.space import Parameter
from train.search.study import Record
from zerotune.common.metric_format import plain

SHORTEST = 14  # characters of a choice that are shown
CURVES = "Validation of all trials: the best in orange, those that were stopped dashed"
CURVES_OF_MANY = (
    "Validation of all trials: the best in orange, the next best in colours, those that were stopped dashed"
)
MOST_NAMED, NAMED_OF_MANY = 10, 5  # trials that have a colour and a line of the legend
COLOURS = (BLUE, "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#1c2430", GREY)
MARKERS = "osv^DPX<>"
PARALLEL = "Parallel coordinates: the best in orange, then the darker the better"
LINES: Mapping[str, Any] = {"complete": "-", "pruned": "--", "failed": ":"}


def draw(
    records: Sequence[Record], best: Record, parameters: Sequence[Parameter], metric: str, sign: int,
    importances: Mapping[str, float], folder: Path,
) -> list[tuple[str, Path]]:  # fmt: skip
    """Write the figures. Returns (caption, file) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context({**STYLE, "font.family": fonts()}):
        for name, caption, figure in (
            ("curves", CURVES if len(records) <= MOST_NAMED else CURVES_OF_MANY, _curves(records, best, metric, sign)),
            ("importances", "Importance of the parameters", _importances(importances, parameters)),
            ("parallel", PARALLEL, _parallel(records, best, parameters, metric, sign)),
        ):
            if figure is not None:
                figure.savefig(folder / f"{name}.png")
                plt.close(figure)
                drawn.append((caption, folder / f"{name}.png"))
    return drawn


def _curves(records: Sequence[Record], best: Record, metric: str, sign: int) -> Figure:
    figure = plt.figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"validation {metric}")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [value for record in records for value in record.validations.values()]
    if _is_wide(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axes.yaxis.set_minor_locator(NullLocator())
    order = sorted(
        (r for r in records if r.validations),
        key=lambda r: (r.number != best.number, r.value is None, sign * (r.value or 0.0), r.number),
    )
    named, others = _divided(order)
    for place, record in enumerate(named):
        style = {"marker": ".", "color": ORANGE, "linewidth": 2.4, "zorder": 4}
        if place:
            style = {"marker": MARKERS[place - 1], "markersize": 4, "color": COLOURS[place - 1], "zorder": 3}
        _curve(axes, record, label=_named(record), **style)
    states = [record.state for record in others]
    for place, record in enumerate(others):
        label = None if record.state in states[:place] else f"{states.count(record.state)} others, {record.state}"
        _curve(axes, record, label=label, marker=".", markersize=3, color=GREY, linewidth=1, zorder=2)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _divided(order: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The trials that have a colour and a name of their own, and the others. order: the best first."""
    if len(order) <= MOST_NAMED:
        return order, []
    named = [record for record in order if record.state == "complete"][:NAMED_OF_MANY]
    return named, [record for record in order if record not in named]


def _named(record: Record) -> str:
    value = "" if record.value is None else f": {plain(record.value)}"
    return f"trial {record.number}{value}" + (f" ({record.state})" if record.state != "complete" else "")


def _curve(axes: Axes, record: Record, **style: Any) -> None:
    steps = sorted(record.validations)
    axes.plot(steps, [record.validations[step] for step in steps], LINES.get(record.state, "-"), **style)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _importances(importances: Mapping[str, float], parameters: Sequence[Parameter]) -> Figure | None:
    if not importances:
        return None
    figure = plt.figure(figsize=(8, 0.9 + 0.45 * len(importances)), layout="constrained")
    axes = figure.subplots()
    names = sorted(importances, key=lambda name: importances[name])
    shown = {parameter.name: _shown(parameter.name, k) for k, parameter in enumerate(parameters)}
    axes.barh([shown[name] for name in names], [importances[name] for name in names], color=BLUE)
    axes.set_xlabel("share of the importance")
    axes.grid(visible=False, axis="y")
    return figure


def _shown(name: str, place: int) -> str:
    """The name of a parameter; its number in the order of the table if no font can draw it."""
    return drawable(name, f"parameter {place + 1}")


def _parallel(
    records: Sequence[Record], best: Record, parameters: Sequence[Parameter], metric: str, sign: int
) -> Figure | None:
    shown = [record for record in records if record.value is not None]
    if len(shown) < 2:
        return None
    width = max(8.0, 1.7 * (len(parameters) + 1))  # shown in one width: the text of a wide figure is larger
    figure = plt.figure(figsize=(width, width / 1.8), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    order = sorted(shown, key=lambda record: sign * (record.value or 0.0))
    shade = mpl.colormaps["viridis"]
    columns = [([record.values[p.name] for record in shown], p.log, _choices(p)) for p in parameters]
    results = [record.value or 0.0 for record in shown]
    columns.append(([*results], _is_wide(results), ()))
    heights = [_heights(*column) for column in columns]
    for record in shown:
        index, rank = shown.index(record), order.index(record) / max(len(order) - 1, 1)
        is_best = record.number == best.number
        axes.plot(
            range(len(heights)), [height[index] for height in heights], LINES.get(record.state, "-"),
            color=ORANGE if is_best else shade(rank), linewidth=2.6 if is_best else 1.2, zorder=3 - rank,
        )  # fmt: skip
    names = [*(_shown(p.name.rpartition(".")[2], k) for k, p in enumerate(parameters)), metric]
    axes.set_xticks(range(len(heights)), names, fontsize=width / 0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for place, (values, _, choices) in enumerate(columns):
        axes.axvline(place, color=GREY, linewidth=0.8)
        _labels(axes, place, values, choices, fontsize=width)
    return figure


def _choices(parameter: Parameter) -> Sequence[Any]:
    """The choices of a parameter from below, numbers by their size; empty for a range."""
    choices: list[Any] = list(parameter.choices)
    return sorted(choices) if all(type(choice) in (int, float) for choice in choices) else choices


def _heights(values: Sequence[Any], log: bool, choices: Sequence[Any]) -> list[float]:
    """From 0 to 1: of choices by their order, of numbers by their size."""
    if choices:
        return [choices.index(value) / max(len(choices) - 1, 1) for value in values]
    numbers = [math.log(value) if log else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _labels(axes: Axes, place: int, values: Sequence[Any], choices: Sequence[Any], fontsize: float) -> None:
    """The ends of an axis, or its choices: by number where no font can draw one."""
    if choices:
        texts = [drawable(str(choice), f"choice {k + 1}") for k, choice in enumerate(choices)]
        ends = [(k / max(len(choices) - 1, 1), text) for k, text in enumerate(texts)]
    else:
        ends = [(0.0, plain(min(values))), (1.0, plain(max(values)))]
    for height, text in ends:
        short = text if len(text) <= SHORTEST else text[: SHORTEST - 1] + "…"
        axes.annotate(
            short, (place, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=fontsize, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip
