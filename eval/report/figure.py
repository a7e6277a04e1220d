"""Draws the metrics: one panel each, with the value and 95 % interval of every model."""

from __future__ import annotations

import io
import math
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from eval.report import words
from eval.report.terminal import folded
from eval.result import MetricResult, Result
from zerotune.common.metric_format import SHARE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, PANEL_WIDTH, LINE_HEIGHT, FRAME_HEIGHT = 2, 5.0, 0.34, 0.95  # inches
MOST_PANELS = 24  # the tables show all metrics
LONGEST_NAME, TITLE_WIDTH = 26, 46  # characters
BASELINE, OTHER, GREY = "#8a8f98", "#2b6cb0", "#c9ced6"
# Fallback fonts for Chinese, which matplotlib's own font lacks; the first installed one is used.
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Heiti SC"),
)


def draw(result: Result, form: Literal["png", "svg"] = "png") -> bytes | None:
    """The content of an image file; None without metrics."""
    panels = [(words.about(task, metric), metric) for task in result.tasks for metric in task.metrics][:MOST_PANELS]
    if not panels:
        return None
    import matplotlib as mpl  # heavy
    from matplotlib.figure import Figure  # unlike pyplot, needs no display

    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (PANEL_WIDTH * columns, lines * (FRAME_HEIGHT + LINE_HEIGHT * len(result.models)))
    with mpl.rc_context(style()):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        names = [_name(place, model.name) for place, model in enumerate(result.models)]
        for panel, (title, metric) in zip(axes, panels, strict=False):
            _draw_panel(panel, title, metric, names)
        for unused in axes[len(panels) :]:
            unused.set_axis_off()
        return saved(figure, form)


def style() -> Any:
    """matplotlib settings of all figures."""
    return {
        "font.family": fonts(),
        "font.size": 10,
        "text.parse_math": False,  # a name may hold a dollar
        "svg.hashsalt": "zerotune",
    }


def saved(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """The content of an image file, deterministic for a figure."""
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return picture.getvalue()


def _draw_panel(axes: Axes, title: str, metric: MetricResult, names: list[str]) -> None:
    scale = 100.0 if words.scale_of(metric) is SHARE else 1.0
    for place, found in enumerate(metric.estimates):
        value, colour = scale * found.value, BASELINE if place == 0 and len(names) > 1 else OTHER
        if not math.isfinite(value):
            continue
        if found.low is not None and found.high is not None:
            axes.plot([scale * found.low, scale * found.high], [place, place], color=colour, linewidth=2, zorder=2)
        axes.plot([value], [place], "o", color=colour, markersize=6, zorder=3)
        axes.annotate(
            words.number(metric, found.value), (value, place), (0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.axvline(scale * metric.estimates[0].value, color=GREY, linewidth=1, linestyle=":", zorder=1)
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.12)
    drawn = {end for found in metric.estimates for end in (found.value, found.low, found.high) if end is not None}
    if len(drawn) == 1 and math.isfinite(metric.estimates[0].value):  # matplotlib would magnify rounding
        middle = scale * metric.estimates[0].value
        axes.set_xlim(middle - max(abs(middle), 1.0), middle + max(abs(middle), 1.0))
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda tick, _: plain(round(tick, 10)))  # no 1e6 beside the axis
    direction = "higher is better" if metric.higher_is_better else "lower is better"
    unit = "%" if words.scale_of(metric) is SHARE else words.scale_of(metric).label
    axes.set_title(folded(drawable(title, "metric"), TITLE_WIDTH), fontsize=11, loc="left")
    axes.set_xlabel(f"{unit}, {direction}" if unit else direction, fontsize=8, color="#4a4f57")
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _name(place: int, name: str) -> str:
    """A model's name, shortened; if no font can draw it, its number in the order of the tables."""
    name = drawable(name, f"model {place + 1}")
    half = (LONGEST_NAME - 3) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


def drawable(text: str, otherwise: str) -> str:
    """The text; `otherwise` if the fonts lack one of its characters."""
    from matplotlib import font_manager

    found = [font_manager.get_font(font_manager.findfont(name)) for name in fonts()]
    known = all(any(font.get_char_index(ord(character)) for font in found) for character in text)
    return text if known and text.isprintable() else otherwise


@cache
def fonts() -> list[str]:
    """matplotlib's own font, and an installed fallback font, if any."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *[name for name in FONTS if name in installed][:1]]
