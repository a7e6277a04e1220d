"""Renders the report as one self-contained HTML file that runs no code from samples.

Jinja escapes every text. The page has the samples as JSON, which its only script inserts as text. The content security
policy allows only that script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.protocols import Sample
from eval.report import matrix, notes, sheets, words
from eval.report.figure import draw
from eval.report.pairs_figure import embedded
from eval.report.text import title
from eval.result import Evaluation, MetricResult, TaskResult
from zerotune.common.metric_format import plain

HERE = Path(__file__).parent
MOST_SAMPLES = 1000  # of a task; the files in samples/ have all
MOST_CHARACTERS = 4000  # of one text
COUNTER = re.compile(r"_[0-9]+$|^unknown")  # bleu_7: a count that has no meaning for a single row
MOST_FOUND = 200  # rows in the training data, and rows left out


def page(evaluation: Evaluation) -> str:
    """The content of report.html."""
    result = evaluation.result
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figure = draw(result, "svg")
    return environment.get_template("page.html.jinja").render(
        title=title(result, escape=False),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        sentences=words.sentences(result),
        multiplicity=words.multiplicity(result),
        warnings=notes.warnings(result),
        figure=base64.b64encode(figure).decode() if figure else None,
        matrix=matrix.matrix(result),
        legend=matrix.legend(result),
        models=[model.name for model in result.models],
        summary=sheets.summary(result),
        tasks=[_task(task, evaluation) for task in result.tasks],
        circumstances=notes.circumstances(result),
        most_found=MOST_FOUND,
    )


def _task(task: TaskResult, evaluation: Evaluation) -> dict[str, Any]:
    clean = sheets.clean(task)
    return {
        "name": task.name,
        "sheets": [(sheet, embedded(sheet)) for sheet in [*sheets.groups(task), *sheets.of_task(task)]],
        "contamination": notes.contamination(task),
        "clean": [clean] if clean else [],
        "found": task.contamination.found if task.contamination else [],
        "skipped": task.skipped,
        "samples": task.samples,
        "browser": _browser(task, evaluation.samples[task.name], evaluation.outcomes.get(task.name, {})),
    }


def _browser(
    task: TaskResult, samples: Mapping[str, Sequence[Sample]], outcomes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The data of the sample browser; of many samples, those that were won or lost come first."""
    models = list(samples)
    rows = list(zip(*samples.values(), strict=True))
    won = list(zip(*outcomes.values(), strict=True)) or [()] * len(rows)
    order = sorted(range(len(rows)), key=lambda k: not any(won[k]))[:MOST_SAMPLES]
    return {
        "models": models,
        "compared": list(outcomes),
        "total": len(rows),
        "rows": [_row(rows[k], won[k], task.metrics) for k in sorted(order)],
    }


def _row(row: Sequence[Sample], won: Sequence[int], metrics: Sequence[MetricResult]) -> dict[str, Any]:
    """A row of the sample browser. values: for sorting. formatted: the same as text."""
    values = {key: [sample.values.get(key) for sample in row] for key in row[0].values if not COUNTER.search(key)}
    named = {metric.name: metric for metric in metrics}
    keys = dict.fromkeys(key for sample in row for key in sample.shown)
    shown = [[key, [_text(sample.shown.get(key)) for sample in row]] for key in keys]
    return {
        "id": row[0].id,
        "groups": [f"{group}: {name}" for group, name in row[0].groups.items()],
        "won": list(won),
        "values": {key: [_number(value) for value in own] for key, own in values.items()},
        "formatted": {key: [_formatted(named.get(key), value) for value in own] for key, own in values.items()},
        "shown": [[key, texts[:1] if len(set(texts)) == 1 else texts] for key, texts in shown],
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _formatted(metric: MetricResult | None, value: float | None) -> str:
    if value is None:
        return ""
    return words.of_row(metric, value) if metric else plain(value)


def _text(value: Any) -> str:
    text = words.readable(value)
    return text[:MOST_CHARACTERS] + (" ..." if len(text) > MOST_CHARACTERS else "")
