"""Renders the report as Markdown, verdicts first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.protocols import Sample
from eval.report import notes, sheets, words
from eval.report.sheets import Sheet
from eval.result import Evaluation, Result, TaskResult
from zerotune.common.console import counted
from zerotune.common.markdown import table as markdown_table

SHOWN_SAMPLES = 5  # of each group
SHOWN_CHARACTERS = 400
SHOWN_ROWS = 10  # skipped rows, and rows in the training data
# Special characters of Markdown; but not in an arrow, or a _ inside a word.
SPECIAL = re.compile(r"([\\`*\[\]|~]|<(?! )|(?<!-)>|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
INTERVAL = re.compile(
    r"\\\[([-+0-9.,ex ]+)\\\](?![(\[:])"
)  # nor into our own intervals, which are to be read as text too


def markdown(evaluation: Evaluation, figure: str | None = None, pictures: Mapping[str, str] | None = None) -> str:
    """The content of report.md. figure: file of the metrics; pictures: title of a table -> file of its figure."""
    result = evaluation.result
    parts = [f"# {title(result)}", summary(result)]
    if figure:
        parts.append(f"![The metrics with 95 % intervals]({figure})")
    parts += [part for task in result.tasks for part in _task(task, evaluation, pictures or {})]
    parts.append("## How this was measured\n\n" + _list(notes.circumstances(result)))
    return "\n\n".join(part for part in parts if part) + "\n"


def title(result: Result, escape: bool = True) -> str:
    """The models, with the baseline last."""
    names = [escaped(m.name) if escape else m.name for m in result.models]
    return "Evaluation: " + (f"{', '.join(names[1:])} against " if names[1:] else "") + names[0]


def summary(result: Result) -> str:
    """The results in sentences and tables."""
    found = [f"- {escaped(s.before)}**{escaped(s.verdict)}**{escaped(s.after)}" for s in words.sentences(result)]
    parts = ["\n".join(found), escaped(words.multiplicity(result))]
    parts.append("\n".join(f"**Note:** {escaped(warning)}\n" for warning in notes.warnings(result)).rstrip())
    parts += [f"**{escaped(sheet.title)}**\n\n{table(sheet)}" for sheet in sheets.summary(result)]
    return "\n\n".join(part for part in parts if part)


def table(sheet: Sheet) -> str:
    """A table of at most some 24 rows: of longer ones, the best and the worst."""
    if not sheet.rows:
        return ""
    first, last, hidden = sheet.short()
    gap = [[f"... {hidden} more in report.html", *[""] * (len(sheet.head) - 1)]] if hidden else []
    rows = [*([cell.text for cell in row] for row in first), *gap, *([cell.text for cell in row] for row in last)]
    return markdown_table([escaped(name) for name in sheet.head], rows, escape=escaped)


def _task(task: TaskResult, evaluation: Evaluation, pictures: Mapping[str, str]) -> Iterator[str]:
    yield f"## {escaped(task.name)}"
    clean = sheets.clean(task)
    for sheet in [*sheets.groups(task), *sheets.of_task(task)]:
        picture = pictures.get(sheet.title)
        shown = f"![The same as bars]({picture})\n\n" if picture else ""
        yield f"### {escaped(sheet.title)}\n\n{shown}{table(sheet)}"
    if task.contamination:
        yield "### Rows in the training data\n\n" + "\n".join(escaped(line) for line in notes.contamination(task))
        if clean:
            yield table(clean)
        places = [f"{found.id}: {found.how}, {found.place}" for found in task.contamination.found]
        yield _list(places[:SHOWN_ROWS], len(places))
    if task.skipped:
        lines = [f"{row.id}: {row.reason}" for row in task.skipped[:SHOWN_ROWS]]
        heading = f"### {counted(len(task.skipped), 'row')} left out of these numbers"
        yield f"{heading}\n\n{_list(lines, len(task.skipped))}"
    yield from _examples(task, evaluation)


def _list(lines: Sequence[str], total: int = 0) -> str:
    more = [f"- and {total - len(lines)} more in result.json"] if total > len(lines) else []
    return "\n".join([*(f"- {escaped(line)}" for line in lines), *more])


def _examples(task: TaskResult, evaluation: Evaluation) -> Iterator[str]:
    """A few samples: first those that the last model won, then lost ones, then others."""
    samples = evaluation.samples[task.name]
    rows = list(zip(*samples.values(), strict=True))
    last = list(evaluation.outcomes.get(task.name, {}).values())[-1:]
    outcomes = last[0] if last else [0] * len(rows)
    for heading, side in (("Won", 1), ("Lost", -1), ("Tied" if last else "Samples", 0)):
        group = [row for row, outcome in zip(rows, outcomes, strict=True) if outcome == side]
        if group:
            yield f"### {heading} ({min(len(group), SHOWN_SAMPLES)} of {len(group)})"
            yield from (_example(task, samples, row) for row in group[:SHOWN_SAMPLES])


def _example(task: TaskResult, models: Mapping[str, Sequence[Sample]], row: Sequence[Sample]) -> str:
    """The metrics of a row, then its texts; texts that all models share appear once."""
    lines = [f"**{escaped(row[0].id)}**", ""]
    for metric in task.metrics:
        lines += [
            f"- {words.named(metric)}{f' ({escaped(model)})' if len(row) > 1 else ''}: "
            f"{words.of_row(metric, sample.values[metric.name])}"
            for model, sample in zip(models, row, strict=True)
            if metric.name in sample.values
        ]
    for key, value in row[0].shown.items():
        values = [sample.shown.get(key) for sample in row]
        if any(other != value for other in values):
            lines += [f"- {key} ({escaped(model)}):{_shown(own)}" for model, own in zip(models, values, strict=True)]
        else:
            lines.append(f"- {key}:{_shown(value)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, Mapping) for part in value):
        return "".join(f"\n  {part}" for part in _parts(value))
    return f" {_cut(words.readable(value)) or '(nothing)'}"


def _parts(value: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each turn of a dialogue on one line."""
    for number, part in enumerate(value, start=1):
        turn = "<br>".join(f"{escaped(name)}: {_cut(words.readable(inner))}" for name, inner in part.items())
        yield f"{number}. {turn}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return escaped(text[:SHOWN_CHARACTERS] + (" ..." if len(text) > SHOWN_CHARACTERS else ""))


def escaped(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    return INTERVAL.sub(r"[\1]", SPECIAL.sub(r"\\\1", re.sub(r"[\r\n]+", " ", text)))
