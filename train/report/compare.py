"""Several runs in one table: the differences between their recipes, and their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.names import shortest
from train.fingerprint import DEFAULTS, FREE_KEYS, unused
from train.report import words
from train.report.run import Run, read_run
from zerotune.common.console import duration
from zerotune.common.errors import UserError
from zerotune.common.markdown import bold, table
from zerotune.common.mask_secrets import mask_all, printable

WIDTH = 80
WIDEST_CELL = 30


@dataclass(frozen=True)
class Column:
    """cells: one per run. best: indices of the best cells, if comparable. is_number: align right."""

    head: str
    cells: Sequence[str]
    best: frozenset[int] = frozenset()
    is_number: bool = True


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs, and a message for each folder that is not a run. Raises UserError if none is a run."""
    runs, others = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            others.append(f"skipped: {error}")
    if not runs:
        raise UserError("\n".join(others))
    return runs, others


def markdown(runs: Sequence[Run]) -> str:
    """The comparison as one Markdown table; best values are bold."""
    first, *rest = columns(runs)
    heads = [column.head for column in (first, *rest)]
    rows = [
        [bold(column.cells[index]) if index in column.best else column.cells[index] for column in (first, *rest)]
        for index in range(len(runs))
    ]
    return printable(table(heads, rows, right=[column.head for column in rest if column.is_number]) + "\n")


def print_comparison(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print the comparison; columns that do not fit into 80 characters go into further tables below."""
    console = console or Console()
    first, *rest = columns(runs)
    for part in _fitting(first, rest, min(WIDTH, console.width)):
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for column in (first, *part):
            shown.add_column(Text(column.head), justify="right" if column.is_number else "left", overflow="fold")
        for index in range(len(runs)):
            shown.add_row(
                *(
                    Text(printable(column.cells[index]), style="bold" if index in column.best else "")
                    for column in (first, *part)
                )
            )
        console.print(shown, width=min(WIDTH, console.width))


def columns(runs: Sequence[Run]) -> list[Column]:
    """Name, settings that differ, step, state, metrics and time of each run."""
    found = [Column("run", shortest([str(run.folder.resolve()) for run in runs]), is_number=False), *_settings(runs)]
    found.append(Column("step", [f"{run.last_step:,}" for run in runs]))
    if any(run.state != "finished" for run in runs):
        found.append(Column("state", [run.state or "-" for run in runs], is_number=False))
    return [*found, *_metrics(runs), Column("time", [duration(run.seconds) for run in runs])]


def _settings(runs: Sequence[Run]) -> Iterator[Column]:
    """The recipe keys that differ, among those that at least one run uses."""
    recipes = [_in_use(run.run_info.get("config")) for run in runs]
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        # A run that does not use a key equals one that has its default.
        if len({_shown(recipe.get(key, DEFAULTS.get(key))) for recipe in recipes}) > 1:
            cells = [_shown(recipe[key]) if key in recipe else "-" for recipe in recipes]
            yield Column(key, cells, is_number=False)


def _in_use(config: Any) -> dict[str, Any]:
    """The settings of run.json's recipe that the run uses and that affect its numbers; empty without a recipe."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and not key.endswith("columns"):
            for name, inner in value.items():
                yield from walk(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    leaves = dict(walk(config, "")) if isinstance(config, Mapping) else {}
    excluded = (*(f"{key}." for key in FREE_KEYS), *unused(leaves))
    kept = {key: value for key, value in leaves.items() if not f"{key}.".startswith(excluded)}
    return dict(mask_all(kept))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        paths = [Path(entry["path"]).name for entry in value if isinstance(entry, Mapping) and "path" in entry]
        return " ".join(paths if len(paths) == len(value) and paths else map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)


def _metrics(runs: Sequence[Run]) -> Iterator[Column]:
    """Held-out metrics at the step that is merged, and at the end if that is later; without any, the training loss."""
    changes = [{change.name: change for change in run.changes()} for run in runs]
    for name in dict.fromkeys(name for one in changes for name in one):
        rows = [one.get(name) for one in changes]
        scale = next(row.scale for row in rows if row)
        lower = {row.lower_is_better for row in rows if row}
        direction = lower.pop() if len(lower) == 1 else None
        last = [row.last if row else None for row in rows]
        chosen = [row.last if row and row.chosen is None else row.chosen if row else None for row in rows]
        title = words.title(name)
        yield Column(title, [words.number(value, scale) for value in chosen], _best(chosen, direction))
        if last != chosen:
            yield Column(f"{title} at the end", [words.number(value, scale) for value in last], _best(last, direction))
    if not any(changes):
        yield Column("training loss", [words.number([None, *run.training_loss.values()][-1]) for run in runs])


def _best(values: Sequence[float | None], lower_is_better: bool | None) -> frozenset[int]:
    known = [value for value in values if value is not None]
    if lower_is_better is None or len(known) < 2:
        return frozenset()
    best = min(known) if lower_is_better else max(known)
    return frozenset(index for index, value in enumerate(values) if value == best)


def _fitting(first: Column, rest: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Groups of columns that fit beside the first one."""

    def wide(column: Column) -> int:
        return min(max(Text(text).cell_len for text in (column.head, *column.cells)), WIDEST_CELL) + 2

    part: list[Column] = []
    for column in rest:
        if part and wide(first) + sum(map(wide, part)) + wide(column) > width - 2:
            yield part
            part = []
        part.append(column)
    yield part
