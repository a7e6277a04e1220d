"""What came out, for the terminal: the answer first, no wider than the window."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.masking import mask_all
from eval.report import notes, sheets, words
from eval.report.sheets import Sheet
from eval.result import Result


def show(result: Result, console: Console | None = None) -> None:
    """Print verdicts, warnings, and every metric with its interval; no secret of the environment."""
    result = mask_all(result)
    console = console or Console()
    for sentence in words.sentences(result):
        console.print(Text.assemble("- ", sentence.before, (sentence.verdict, "bold"), sentence.after))
    if several := words.multiplicity(result):
        console.print(Text(several, style="dim"))
    for warning in notes.warnings(result):
        console.print(Text.assemble(("Note: ", "bold"), warning))
    for sheet in sheets.summary(result):
        console.print(_table(sheet))


def _table(sheet: Sheet) -> Table:
    table = Table(title=sheet.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    first, last, hidden = sheet.short()
    for place, name in enumerate(sheet.head):
        numbers = any(row[place].value is not None for row in sheet.rows)
        table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    more = [[f"... {hidden} more in report.html"]] if hidden else []
    rows = [[cell.text for cell in row] for row in first] + more + [[cell.text for cell in row] for row in last]
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    return table
