"""The tables of a report, for Markdown and HTML. Cells are plain texts that are not escaped yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.protocols import Table
from eval.report import words
from eval.result import MetricResult, Result, TaskResult
from zerotune.common.metric_format import SHARE, percent, plain
from zerotune.models.run_facts import RunFacts

LONGEST = 24  # rows of a table in Markdown
ENDS = 10  # best and worst rows shown of a longer one


@dataclass(frozen=True)
class Cell:
    """value: number for sorting, if any. share: 0 to 1, drawn as a bar."""

    text: str
    value: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table. ranked: rows are sorted, best first. pairs: columns 1 and 2 are shares, drawn as bars."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    ranked: bool = False
    pairs: bool = False

    @property
    def only_texts(self) -> bool:
        """Whether the table has no numbers."""
        return all(cell.value is None for row in self.rows for cell in row)

    def is_number(self, column: int) -> bool:
        """Whether the column has numbers."""
        return any(row[column].value is not None for row in self.rows)

    def short(self) -> tuple[Sequence[Sequence[Cell]], Sequence[Sequence[Cell]], int]:
        """The first rows, the last rows, and the number of rows between them."""
        if len(self.rows) <= LONGEST:
            return self.rows, (), 0
        tail = self.rows[-ENDS:] if self.ranked else ()
        head = self.rows[: ENDS if self.ranked else LONGEST]
        return head, tail, len(self.rows) - len(head) - len(tail)


def summary(result: Result) -> list[Sheet]:
    """The summary tables: training (if known), metrics, comparisons, and those that tasks put there."""
    own = [sheet for task in result.tasks for sheet in of_task(task, in_summary=True)]
    return [sheet for sheet in (training(result), metrics(result), comparisons(result), *own) if sheet.rows]


def training(result: Result) -> Sheet:
    """Trained parameters, steps, epochs and data of the models; no rows if no run trained any of them."""
    head = ["model", "trained parameters", "share", "step", "epochs", "of the data"]
    known = any(model.origin for model in result.models)
    return Sheet("Training", head, [[Cell(m.name), *_training(m.origin)] for m in result.models] if known else [])


def _training(origin: RunFacts | None) -> list[Cell]:
    if origin is None:
        return [Cell("")] * 5
    trained = f"{origin.trained:,} of {origin.total:,}" if origin.trained is not None else ""
    share = origin.trained / origin.total if origin.trained is not None and origin.total else None
    return [
        Cell(trained, None if origin.trained is None else float(origin.trained)),
        Cell("" if share is None else percent(share), share),
        Cell(f"{origin.step:,}", float(origin.step)),
        Cell("" if origin.epochs is None else plain(origin.epochs), origin.epochs),
        Cell("" if origin.data_share is None else percent(origin.data_share), origin.data_share),
    ]


def metrics(result: Result) -> Sheet:
    """Every metric of every model, with its interval."""
    rows = [
        [
            Cell(task.name),
            Cell(words.titled(metric)),
            _count(task.samples),
            *(Cell(words.with_interval(metric, estimate), estimate.value) for estimate in metric.estimates),
        ]
        for task in result.tasks
        for metric in task.metrics
    ]
    return Sheet("Metrics", ["task", "metric", "rows", *(model.name for model in result.models)], rows)


def comparisons(result: Result) -> Sheet:
    """Every model compared with the baseline."""
    several = len(result.models) > 2
    rows = []
    for task in result.tasks:
        for metric in task.metrics:
            for found in metric.differences:
                rows.append(
                    [
                        Cell(words.about(task, metric)),
                        *([Cell(found.model)] if several else []),
                        Cell(words.change_with_interval(metric, found), found.value),
                        Cell(words.probability(found.p_value), found.p_value),
                        Cell(words.probability(found.p_holm), found.p_holm),
                        Cell(f"{found.won} / {found.lost} / {found.tied}", float(found.won - found.lost)),
                        Cell(words.detectable(metric, found), found.detectable),
                        Cell(found.verdict),
                    ]
                )
    head = [
        "",
        *(["model"] if several else []),
        "change",
        "p",
        "p (Holm)",
        "won / lost / tied",
        "detectable from",
        "verdict",
    ]
    return Sheet("Against the baseline", head, rows)


def groups(task: TaskResult) -> list[Sheet]:
    """A table for each grouping of the rows, sorted by the last model, best first."""
    kinds = list(dict.fromkeys(part.group for metric in task.metrics for part in metric.groups))
    return [_group(task, kind) for kind in kinds]


def _group(task: TaskResult, kind: str) -> Sheet:
    first = task.metrics[0]
    last = {part.name: part.estimates[-1].value for part in first.groups if part.group == kind}
    order = sorted(last, key=lambda name: last[name], reverse=first.higher_is_better)
    sizes = {part.name: part.samples for part in first.groups if part.group == kind}
    columns = [column for metric in task.metrics for column in _group_columns(metric, kind)]
    rows = [[Cell(name), _count(sizes[name]), *(cell(name) for _, cell in columns)] for name in order]
    return Sheet(f"By {kind.replace('_', ' ')}", [kind, "rows", *(title for title, _ in columns)], rows, ranked=True)


def _group_columns(metric: MetricResult, kind: str) -> Iterator[tuple[str, Callable[[str], Cell]]]:
    parts = {part.name: part for part in metric.groups if part.group == kind}
    for place, estimate in enumerate(metric.estimates):

        def cell(name: str, place: int = place) -> Cell:
            found = parts[name].estimates[place]
            return Cell(
                words.with_interval(metric, found),
                found.value,
                found.value if words.scale_of(metric) is SHARE else None,
            )

        yield f"{words.named(metric)}, {estimate.model}" if len(metric.estimates) > 1 else words.named(metric), cell
    if len(metric.estimates) == 2:

        def gap(name: str) -> Cell:
            before, after = (estimate.value for estimate in parts[name].estimates)
            between = words.scale_of(metric).between
            return Cell(words.change(metric, between(before, after)) + words.unit(metric), between(before, after))

        yield "change", gap


def of_task(task: TaskResult, in_summary: bool = False) -> list[Sheet]:
    """The task's own tables: first those of the data, then those of the models, side by side; a model may lack one."""
    own = {model: [t for t in tables if t.in_summary == in_summary] for model, tables in task.tables.items()}
    found = [_sheet(table) for table in next(iter(own.values()), ()) if table.of_data]
    titles = dict.fromkeys(table.title for tables in own.values() for table in tables if not table.of_data)
    for title in titles:
        same = {model: table for model, tables in own.items() for table in tables if table.title == title}
        found.append(_side_by_side(same) if len(own) > 1 else _sheet(same[next(iter(own))]))
    return found


def _sheet(table: Table) -> Sheet:
    rows = [[_cell(table, place, value) for place, value in enumerate(row)] for row in table.rows]
    return Sheet(table.title, table.head, rows, pairs=table.pairs)


def _side_by_side(tables: Mapping[str, Table]) -> Sheet:
    """Join the models' tables: numbers side by side, texts below each other; shared columns once."""
    first = next(iter(tables.values()))
    if all(isinstance(value, str) for table in tables.values() for row in table.rows for value in row):
        return _under_each_other(tables)
    found = {model: {row[0]: row for row in table.rows} for model, table in tables.items()}
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))  # of any model
    rows = []
    for name in names:
        lines = [rows.get(name) for rows in found.values()]
        shared = next(line for line in lines if line)[: first.shared]
        places = range(first.shared, len(first.head))
        own = [_cell(first, k, line[k] if line else "") for k in places for line in lines]
        rows.append([*(_cell(first, k, value) for k, value in enumerate(shared)), *own])
    own_head = [f"{title}, {model}" for title in first.head[first.shared :] for model in tables]
    return Sheet(first.title, [*first.head[: first.shared], *own_head], rows)


def _under_each_other(tables: Mapping[str, Table]) -> Sheet:
    first = next(iter(tables.values()))
    rows = [
        [Cell(str(row[0])), Cell(model), *(Cell(str(value)) for value in row[1:])]
        for same in zip(*(table.rows for table in tables.values()), strict=True)
        for model, row in zip(tables, same, strict=True)
    ]
    return Sheet(first.title, [first.head[0], "model", *first.head[1:]], rows)


def clean(task: TaskResult) -> Sheet | None:
    """Every metric over all rows, and over those that do not occur in the training data."""
    found = task.contamination
    if found is None or not found.metrics:
        return None
    rows = []
    for metric, again in zip(task.metrics, found.metrics, strict=True):
        verdicts = {change.model: change.verdict for change in again.differences}
        for before, after in zip(metric.estimates, again.estimates, strict=True):
            values = [Cell(words.with_interval(metric, estimate), estimate.value) for estimate in (before, after)]
            rows.append([Cell(words.named(metric)), Cell(before.model), *values, Cell(verdicts.get(before.model, ""))])
    head = ["metric", "model", f"all {task.samples:,} rows", f"{found.clean:,} clean rows", "verdict on clean rows"]
    return Sheet("Without the rows in the training data", head, rows)


def _cell(table: Table, place: int, value: str | float) -> Cell:
    if isinstance(value, str):
        return Cell(value)
    return Cell((percent if place in table.shares else plain)(value), float(value))


def _count(samples: int) -> Cell:
    return Cell(f"{samples:,}", float(samples))
