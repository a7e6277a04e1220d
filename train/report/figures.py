"""Draws curves as PNG files, without text from the data, which would need fonts for its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from train.report.run import Curve, Run
from train.report.words import title
from zerotune.common.metric_format import SHARE

BLUE, ORANGE, GREY = "#2b6cb0", "#d9480f", "#8a8f98"
_MANY_POINTS = 120  # a longer curve is drawn faintly, with its moving average over it
_OF_ANSWERS = {
    "kl": "KL from the reference model, nats per answer",
    "entropy": "Entropy, nats per token",
    "response_tokens": "Tokens per answer",
    "finished": "Answers that end with an end token",
    "repetition": "Repeated word triples",
}
STYLE: Any = {  # matplotlib types its keys one by one
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a label may hold a dollar
}


def draw(run: Run, folder: Path) -> list[tuple[str, Path]]:
    """Write a figure for each group of curves that the run has. Returns (caption, file) of each."""
    drawn = []
    for name, caption, figure in (
        ("loss", "Loss in training and on held-out rows", _loss),
        ("reward", "Reward of each rollout's answers, plus and minus one standard deviation; components", _reward),
        ("answers", "Answers of each rollout", _answers),
        ("validation", "Other metrics on held-out rows", _validation),
        ("learning", "Learning rate and gradient norm", _learning),
        ("speed", "Speed", _speed),
    ):
        with mpl.rc_context(STYLE):
            result = figure(run)
            if result is not None:
                folder.mkdir(parents=True, exist_ok=True)
                result.savefig(folder / f"{name}.png")
                plt.close(result)
                drawn.append((caption, folder / f"{name}.png"))
    return drawn


def _loss(run: Run) -> Figure | None:
    train, held_out = run.training_loss, run.curve("validation/loss")
    if not train:
        return None
    figure, (axes,) = _panels(1, height=4.0)
    axes.set_title("Loss, nats per trained token" if run.setting("objective") in (None, "causal_lm") else "Loss")
    _line(axes, train, BLUE, "training")
    if held_out:
        _validations(axes, held_out, "held-out")
        if run.best_step is not None and run.chosen_by == "loss":
            best = held_out[run.best_step]
            label = f"best: {best:.4g} at step {run.best_step}"
            axes.plot([run.best_step], [best], "o", markersize=11, fillstyle="none", color=ORANGE, label=label)
    axes.legend()
    return figure


def _reward(run: Run) -> Figure | None:
    reward, deviation = run.curve("rollout/reward"), run.curve("rollout/reward_deviation")
    if not reward:
        return None
    parts = _parts(run) if len(_parts(run)) > 1 else []
    figure, (axes, *below) = _panels(1 + len(parts), height=4.0 + 2.0 * len(parts), first=2.0)
    axes.set_title("Reward")
    steps, values = _points(reward)
    deviations = [deviation.get(step, 0.0) for step in steps]
    low, high = ([value + sign * width for value, width in zip(values, deviations, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="standard deviation")
    _rollouts(run, axes, "reward")
    axes.legend()
    for panel, name in zip(below, parts, strict=True):
        panel.set_title(f"Component {title(name.removeprefix('reward_'))}, without its weight")
        _rollouts(run, panel, name)
    return figure


def _answers(run: Run) -> Figure | None:
    shown = {name: text for name, text in _OF_ANSWERS.items() if run.curve(f"rollout/{name}")}
    if not shown:
        return None
    figure, panels = _panels(len(shown), height=1.0 + 2.0 * len(shown))
    for axes, (name, text) in zip(panels, shown.items(), strict=True):
        axes.set_title(text)
        _rollouts(run, axes, name)
        if name in ("finished", "repetition"):
            _as_shares(axes, run.curve(f"rollout/{name}"), run.curve(f"validation/{name}"))
    panels[0].legend()
    return figure


def _parts(run: Run) -> list[str]:
    known = {f"reward_{name}" for name in ("deviation", "min", "max")}
    names = [name.removeprefix("rollout/") for name in run.curves if name.startswith("rollout/reward_")]
    return [name for name in names if name not in known]


def _rollouts(run: Run, axes: Axes, name: str) -> None:
    _line(axes, run.curve(f"rollout/{name}"), BLUE, "training")
    held_out = run.curve(f"validation/{name}")
    if held_out:
        _validations(axes, held_out, "held-out prompts, greedy")


def _validation(run: Run) -> Figure | None:
    drawn = {"loss", "perplexity", *(name.removeprefix("rollout/") for name in run.curves)}
    changes = [change for change in run.changes() if change.name not in drawn]
    if not changes:
        return None
    figure, panels = _panels(len(changes), height=1.0 + 2.0 * len(changes))
    for axes, change in zip(panels, changes, strict=True):
        curve = run.curve(f"validation/{change.name}")
        axes.set_title(f"Held-out {title(change.name)}")
        _validations(axes, curve, None)
        if change.scale is SHARE:
            _as_shares(axes, curve)
    return figure


def _learning(run: Run) -> Figure | None:
    rate, norm = run.curve("train/learning_rate"), run.curve("train/gradient_norm")
    if not rate or not norm:
        return None
    figure, (upper, lower) = _panels(2, height=4.6)
    upper.set_title("Learning rate")
    upper.plot(*_points(rate), color=BLUE)
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
    )
    lower.set_title("Gradient norm before clipping")
    _line(lower, norm, BLUE, None)
    lower.set_ylim(bottom=0)
    clip = run.setting("optim.clip_norm")
    if clip and clip < max(norm.values()):
        lower.axhline(clip, color=GREY, linestyle="--", linewidth=1.2)
        lower.annotate(
            f"clipped at {clip:g}", (0.995, clip), xycoords=("axes fraction", "data"), xytext=(0, 4),
            textcoords="offset points", ha="right", color="#4a4f57", fontsize=9,
        )  # fmt: skip
    return figure


def _speed(run: Run) -> Figure | None:
    speed = run.curve("train/tokens_per_second")
    if not speed:
        return None
    figure, (axes,) = _panels(1, height=2.8)
    axes.set_title("Tokens per second, without padding, all ranks")
    _line(axes, speed, BLUE, None)
    axes.set_ylim(0, 1.1 * max(speed.values()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _panels(count: int, height: float, first: float = 1.0) -> tuple[Figure, list[Axes]]:
    """first: height of the first panel, relative to the others."""
    figure, panels = plt.subplots(
        count, 1, figsize=(8, height), sharex=True, squeeze=False, layout="constrained",
        height_ratios=[first, *[1.0] * (count - 1)],
    )  # fmt: skip
    axes = list(panels[:, 0])
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def _line(axes: Axes, curve: Curve, color: str, label: str | None) -> None:
    steps, values = _points(curve)
    if len(steps) > _MANY_POINTS:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        values = _moving_average(values, window=len(values) // 40)
    axes.plot(steps, values, color=color, label=label, marker="o" if len(steps) == 1 else None)


def _validations(axes: Axes, curve: Curve, label: str | None) -> None:
    style = "o-" if len(curve) > 2 else "o"  # a line between two points suggests values that nobody measured
    axes.plot(*_points(curve), style, color=ORANGE, markersize=6, label=label, clip_on=False)


def _as_shares(axes: Axes, *curves: Curve) -> None:
    highest = max([0.05, *(value for curve in curves for value in curve.values())])
    axes.set_ylim(0, min(1.0, 1.2 * highest))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def _moving_average(values: list[float], window: int) -> list[float]:
    """Mean of each value and `window` values on both sides, fewer at the ends."""
    smooth = []
    for index in range(len(values)):
        near = values[max(0, index - window) : index + window + 1]
        smooth.append(sum(near) / len(near))
    return smooth
