"""The report for the terminal, at most 80 columns wide."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.report import words
from train.report.run import Run, read_run
from zerotune.common.mask_secrets import printable

_WIDTH = 80
_SAMPLES = 3
_EPOCH_ROWS = 12
_EPOCH_METRICS = 5
_SAMPLE_CHARACTERS = 220


def print_table(run_folder: Path, console: Console | None = None) -> None:
    """Print results, costs and samples. Raises UserError if `run_folder` is not a run folder."""
    run = read_run(run_folder)
    console = console or Console()
    width = min(_WIDTH, console.width)
    state = f" ({run.state} at step {run.last_step})" if run.state in ("preempted", "failed") else ""
    console.print()
    console.print(Text(printable(f"{run_folder}{state}"), style="bold"), width=width)
    console.print(Text(words.headline(run)), width=width)
    for table in (_before_and_after(run), _over_epochs(run), _overview(run), _samples(run)):
        if table.row_count:
            console.print()
            console.print(table, width=width)


def _before_and_after(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("held-out")
    heads = ["before", f"after, step {run.merge_step}", "change"]
    continued = run.merge_step != run.last_step
    for head in [*heads, f"end, step {run.last_step}"] if continued else heads:
        table.add_column(head, justify="right")
    for change in run.changes():
        color = {True: "green", False: "red", None: ""}[change.better]
        cells: list[str | Text] = [
            words.number(change.before, change.scale),
            Text(words.number(change.chosen, change.scale), style="bold"),
            Text(words.difference(change), style=color),
            words.number(change.last, change.scale),
        ]
        table.add_row(words.title(change.name), *cells[: 4 if continued else 3])
    return table


def _over_epochs(run: Run) -> Table:
    heads, rows = words.over_epochs(run, _EPOCH_ROWS, _EPOCH_METRICS)
    caption = "; ".join(
        text for text in ("* " + ("merged" if run.is_merged else "would be merged"), words.trained_share(run)) if text
    )
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), caption=caption)
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _overview(run: Run) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    more = []
    if (run.folder / "report.md").is_file():
        more.append(("Report", str(run.folder / "report.md")))
    if any(run.folder.glob("events.out.tfevents.*")) or (run.folder / "tensorboard").is_dir():
        more.append(("Curves", f"tensorboard --logdir {run.folder.parent}"))
    for name, text in words.overview(run) + more:
        table.add_row(name, Text(printable(text)))
    return table


def _samples(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), show_lines=True)
    heads, rows = words.samples(run)
    kept = [index for index, head in enumerate(heads) if head != "reference"]
    for head in (heads[index] for index in kept):
        if head == "reward":
            table.add_column(head, justify="right")
        else:
            table.add_column(head, ratio=1, overflow="fold")
    for row in rows[:_SAMPLES]:
        table.add_row(*(Text(words.shortened(row[index], _SAMPLE_CHARACTERS)) for index in kept))
    return table
