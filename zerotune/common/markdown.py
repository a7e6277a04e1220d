"""Markdown tables. Whatever texts that a model wrote hold, in a cell they stay text."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence


class Markup(str):
    """A cell that is Markdown already."""

    __slots__ = ()


def cell(text: str) -> str:
    """The text on one line, nothing in it read as Markdown or HTML."""
    shown = html.escape(text, quote=False).replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]])", r"\\\1", shown).replace("\n", "<br>")


def bold(text: str) -> Markup:
    """The text as a bold cell."""
    return Markup(f"**{cell(text)}**")


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    escape: Callable[[str], str] = cell,
) -> str:
    """Heads are Markdown, cells are texts, but for `Markup`.

    right: the heads of columns that are numbers. escape: keeps a text a text.
    """
    marks = ["---:" if head in right else "---" for head in heads]
    cells = [[text if isinstance(text, Markup) else escape(text) for text in row] for row in rows]
    head, *rest = (f"| {' | '.join(line)} |" for line in (heads, *cells))
    return "\n".join([head, f"|{'|'.join(marks)}|", *rest])
