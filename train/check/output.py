"""Writes a report: to the terminal, no wider than 80 columns, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.check.findings import Report
from train.check.rendered import as_html, as_text
from train.check.sheets import Sheet, sheets
from zerotune.common import markdown
from zerotune.common.mask_secrets import printable, printable_all

WIDTH = 80


def show(report: Report, console: Console | None = None) -> None:
    """Print the report."""
    report = printable_all(report)
    console = console or Console(highlight=False)
    console.width = min(console.width, WIDTH)
    console.print(Text(title(report), style="bold"), soft_wrap=False)
    for sheet in sheets(report):
        console.print("", _table(sheet), sep="\n")
        for line in sheet.below:
            console.print(Text(line, style="dim"))
    for row in report.rendered:
        console.print(Text(f"\n{row.source}, {row.place}: learned tokens in green, between ⟦ and ⟧", style="bold"))
        console.print(as_text(row))
    for line in report.notes:
        console.print(Text(f"Note: {line}"))


def title(report: Report) -> str:
    """One line: what was checked."""
    rows = sum(source.rows for source in report.sources)
    return f"{report.objective}, tokenizer of {report.model}: {rows:,} rows in {report.seconds:.1f} s"


def _table(sheet: Sheet) -> Table:
    table = Table(
        title=Text(sheet.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    for head in sheet.heads:
        table.add_column(head, justify="right" if head in sheet.right else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def as_markdown(report: Report) -> str:
    """The report as a Markdown page."""
    report = printable_all(report)
    parts = [f"# {markdown.cell(title(report))}", *(f"**{markdown.cell(line)}**" for line in report.exceeded)]
    for sheet in sheets(report):
        parts += [f"## {markdown.cell(sheet.title)}", markdown.table(sheet.heads, sheet.rows, sheet.right)]
        parts += [f"- {markdown.cell(line)}" for line in sheet.below]
    parts += [f"- {markdown.cell(line)}" for line in report.notes]
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> str:
    """All values of the report."""
    return printable(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1)) + "\n"


def as_page(report: Report) -> str:
    """The rendered rows as an HTML page."""
    report = printable_all(report)
    return as_html(title(report), report.rendered)
