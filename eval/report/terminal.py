"""Prints the results on the terminal, verdicts first, no wider than the window."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.report import notes, sheets, words
from eval.report.sheets import Sheet
from eval.result import Result
from zerotune.common.mask_secrets import printable_all

# Lines break at spaces, and inside names after / _ or -; numbers are never broken.
PIECES = re.compile(r"(?<= )|(?<=[A-Za-z0-9][/_-])(?=[A-Za-z])")
GAP = 2  # characters between columns
LONGEST_TEXT = 160  # characters of a cell


def show(result: Result, console: Console | None = None) -> None:
    """Print verdicts, warnings, metrics with intervals, and tables of tasks without metrics; secrets are masked."""
    result = printable_all(result)
    console = console or Console()
    for sentence in words.sentences(result):
        console.print(Text.assemble("- ", sentence.before, (sentence.verdict, "bold"), sentence.after))
    if several := words.multiplicity(result):
        console.print(Text(several, style="dim"))
    for warning in notes.warnings(result):
        console.print(Text.assemble(("Note: ", "bold"), warning))
    for sheet in sheets.summary(result):
        console.print("", *_tables(sheet, console.width), sep="\n")
    for sheet in (sheet for task in result.tasks if not task.metrics for sheet in sheets.of_task(task)):
        console.print("", *_tables(sheet, console.width, lines=True), sep="\n")


def _tables(sheet: Sheet, room: int, lines: bool = False) -> list[Table]:
    """One table, or several below each other if its columns do not fit. lines: draw lines between the rows."""
    first, last, hidden = sheet.short()
    more = [[f"... {hidden} more in report.html", *[""] * (len(sheet.head) - 1)]] if hidden else []
    rows = [[cell.text for cell in row] for row in first] + more + [[cell.text for cell in row] for row in last]
    rows = [[text[:LONGEST_TEXT] + (" ..." if len(text) > LONGEST_TEXT else "") for text in row] for row in rows]
    columns = list(zip(sheet.head, *rows, strict=True))
    numbers = [any(row[place].value is not None for row in sheet.rows) for place in range(len(columns))]
    found: list[Table] = []
    for places in column_groups(columns, names=numbers.index(True) if any(numbers) else 1, room=room):
        own = [columns[place] for place in places]
        widths = column_widths(own, room - GAP * (len(own) - 1))
        table = Table(
            title=None if found else Text(sheet.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
            pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False, show_lines=lines,
        )  # fmt: skip
        for place, texts, width in zip(places, own, widths, strict=True):
            table.add_column(Text(folded(texts[0], width)), justify="right" if numbers[place] else "left", width=width)
        for row in list(zip(*own, strict=True))[1:]:
            table.add_row(*(Text(folded(text, width)) for text, width in zip(row, widths, strict=True)))
        found.append(table)
    return found


def column_groups(columns: Sequence[Sequence[str]], names: int, room: int) -> list[list[int]]:
    """Column indices of each table. The first `names` columns, which name the rows, are in all of them."""
    least = [GAP + width for width in _least_widths(columns)]
    first = list(range(names))
    groups = [first]
    for place in range(names, len(columns)):
        if len(groups[-1]) > names and sum(least[k] for k in [*groups[-1], place]) - GAP > room:
            groups.append(first)
        groups[-1] = [*groups[-1], place]
    return groups


def _least_widths(columns: Sequence[Sequence[str]]) -> list[int]:
    """Minimum widths that break no piece of text."""
    return [max(cell_len(piece.rstrip()) for text in texts for piece in PIECES.split(text)) for texts in columns]


def column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of the texts; if too wide, the widest are narrowed, if possible without breaking pieces of text."""
    widths = [max(map(cell_len, texts)) for texts in columns]
    for least in (_least_widths(columns), [1] * len(columns)):
        while sum(widths) > room:
            narrowable = [place for place, width in enumerate(widths) if width > least[place]]
            if not narrowable:
                break
            widths[max(narrowable, key=widths.__getitem__)] -= 1
    return widths


def folded(text: str, width: int) -> str:
    """Wrap the text to lines of at most `width` characters; a longer piece is broken."""
    done: list[str] = []
    for line in text.splitlines():
        done.append("")
        for piece in PIECES.split(line):
            if done[-1] and cell_len(done[-1] + piece.rstrip()) > width:
                done.append("")
            if cell_len(piece.rstrip()) > width:
                done[-1:] = chop_cells(piece.rstrip(), width)
                piece = piece[len(piece.rstrip()) :]
            done[-1] += piece
    return "\n".join(line.rstrip() for line in done)
