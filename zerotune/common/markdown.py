"""Texts that a model wrote, as cells of Markdown tables: whatever they hold stays text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def cell(text: str) -> str:
    """The text on one line, nothing in it read as Markdown or HTML."""
    shown = html.escape(text, quote=False).replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]])", r"\\\1", shown).replace("\n", "<br>")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Cells as texts. right: the heads of columns that are numbers."""
    marks = ["---:" if head in right else "---" for head in heads]
    lines = [heads, *(map(cell, row) for row in rows)]
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'|'.join(marks)}|", *rest])
