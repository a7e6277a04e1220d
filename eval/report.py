"""The report for people, the answer first; and everything else that an evaluation leaves in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.figure import draw
from eval.files import write_atomically
from eval.protocols import Sample
from eval.result import Difference, Estimate, Evaluation, MetricResult, Result, TaskResult, sample_lines

SHOWN_SAMPLES = 5  # of each group
SHOWN_CHARACTERS = 400
SHOWN_SKIPPED = 10
LARGE = 1000.0  # from here on numbers are shown without decimals
SPECIAL = re.compile(r"([\\`*_\[\]<>|~])")  # Markdown would read meaning into these


def write(evaluation: Evaluation, folder: Path) -> None:
    """result.json, report.md, metrics.png, and samples/TASK.MODEL.jsonl. Raises CannotWriteError."""
    for task, models in evaluation.samples.items():
        for model, samples in models.items():
            name = f"{task}.{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}.jsonl"
            write_atomically(folder / "samples" / name, sample_lines(samples))
    drawn = draw(evaluation.result, folder / "metrics.png")
    write_atomically(folder / "report.md", markdown(evaluation, "metrics.png" if drawn else None))
    write_atomically(folder / "result.json", evaluation.result.to_json())  # last: where it stands, all is there


def markdown(evaluation: Evaluation, figure: str | None = None) -> str:
    """The report as Markdown."""
    result = evaluation.result
    parts = [f"# Evaluation: {' against '.join(_escaped(m.name) for m in reversed(result.models))}", summary(result)]
    if figure:
        parts.append(f"![The metrics with 95 % intervals]({figure})")
    parts += [_skipped(task) for task in result.tasks if task.skipped]
    parts += [_examples(task, evaluation.samples[task.name]) for task in result.tasks]
    return "\n\n".join(part for part in [*parts, _circumstances(result)] if part) + "\n"


def summary(result: Result) -> str:
    """What changed, in words and as one table."""
    changes = [(t, m, difference) for t in result.tasks for m in t.metrics for difference in m.differences]
    return "\n\n".join(part for part in ("\n".join(_sentence(*change) for change in changes), _table(result)) if part)


def _sentence(task: TaskResult, metric: MetricResult, difference: Difference) -> str:
    after = next(estimate for estimate in metric.estimates if estimate.model == difference.model)
    values = f"{_number(metric, metric.estimates[0].value)} -> {_number(metric, after.value)}"
    about = task.name if task.name == metric.name else f"{task.name}, {_words(metric)}"
    return f"- {about}: {values} ({_escaped(difference.model)}): **{difference.verdict}**"


def _table(result: Result) -> str:
    names = [_escaped(model.name) for model in result.models]
    rows = [_row(task, metric) for task in result.tasks for metric in task.metrics]
    changes = [head for name in names[1:] for head in (f"{name} - {names[0]}", "won / lost / tied")]
    head = ["task", "metric", "samples", *names, *changes]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]) if rows else ""


def _row(task: TaskResult, metric: MetricResult) -> list[str]:
    values = [_with_interval(metric, estimate) for estimate in metric.estimates]
    changes = [
        cell for d in metric.differences for cell in (_with_interval(metric, d), f"{d.won} / {d.lost} / {d.tied}")
    ]
    return [task.name, _words(metric), str(task.samples), *values, *changes]


def _with_interval(metric: MetricResult, found: Estimate | Difference) -> str:
    sign = "+" if isinstance(found, Difference) and found.value > 0 else ""
    value = sign + _number(metric, found.value)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{_number(metric, found.low)}, {_number(metric, found.high)}]"


def _number(metric: MetricResult, value: float) -> str:
    if metric.is_share:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.4g}"


def _words(metric: MetricResult) -> str:
    return metric.name.replace("_", " ")


def _skipped(task: TaskResult) -> str:
    lines = [f"- {_escaped(row.id)}: {row.reason}" for row in task.skipped[:SHOWN_SKIPPED]]
    more = [f"- and {len(task.skipped) - SHOWN_SKIPPED} more"] if len(task.skipped) > SHOWN_SKIPPED else []
    return "\n".join([f"## {task.name}: {len(task.skipped)} rows are not in these numbers", "", *lines, *more])


def _examples(task: TaskResult, samples: Mapping[str, Sequence[Sample]]) -> str:
    """A few samples: first those that the last model won, then those that it lost, then others."""
    rows = list(zip(*samples.values(), strict=True))
    judged = next((metric.name for metric in task.metrics if metric.is_share), None)
    groups: dict[str, list[Sequence[Sample]]] = {"won": [], "lost": [], "samples": []}
    for row in rows:
        gain = row[-1].values[judged] - row[0].values[judged] if judged else 0.0
        groups["won" if gain > 0 else "lost" if gain < 0 else "samples"].append(row)
    parts = [f"## {task.name}"]
    for title, group in groups.items():
        if group:
            parts.append(f"### {title.capitalize()} ({min(len(group), SHOWN_SAMPLES)} of {len(group)})")
            parts += [_example(list(samples), row) for row in group[:SHOWN_SAMPLES]]
    return "\n\n".join(parts)


def _example(models: Sequence[str], row: Sequence[Sample]) -> str:
    """What all models share once, what differs for each."""
    lines = [f"**{_escaped(row[0].id)}**", ""]
    for key, value in row[0].shown.items():
        values = [sample.shown.get(key) for sample in row]
        if len(row) > 1 and any(other != value for other in values):
            lines += [f"- {key} ({_escaped(model)}): {_shown(own)}" for model, own in zip(models, values, strict=True)]
        else:
            lines.append(f"- {key}: {_shown(value)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    return _escaped(text[:SHOWN_CHARACTERS] + (" ..." if len(text) > SHOWN_CHARACTERS else "")) or "(nothing)"


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)


def _circumstances(result: Result) -> str:
    lines = [
        f"- {_escaped(model.name)}: {_escaped(model.path)}, {model.precision}, weights {model.digests['weights'][:12]}"
        for model in result.models
    ]
    for task in result.tasks:
        times = ", ".join(f"{_escaped(model)} {seconds:.1f} s" for model, seconds in task.seconds.items())
        files = ", ".join(f"{_escaped(file)} ({digest[:12]})" for file, digest in task.data.items())
        lines.append(f"- {task.name} version {task.version}: {files}; {times}")
    metrics = [metric for task in result.tasks for metric in task.metrics]
    used = {e.method for m in metrics for e in m.estimates} | {d.method for m in metrics for d in m.differences}
    methods = sorted(method for method in used if method)
    if methods:
        lines.append(f"- 95 % intervals: {', '.join(methods)}; differences are paired on the same samples")
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    lines.append(f"- {result.created}, {result.settings['device']}, {result.settings['ranks']} processes; {versions}")
    return "\n".join(["## How this was measured", "", *lines])
