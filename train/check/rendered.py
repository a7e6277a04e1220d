"""Rows as a model reads them, with the learned tokens marked: for the terminal, and as HTML to share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.text import Text

from train.check.findings import RenderedRow
from train.check.load import Loaded

LEARNED, READ = "bold green", "dim"
MOST_CHARACTERS = 4000  # of a piece
PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1c2430 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .7em; border: 1px solid #ccd; border-radius: 4px }}
mark {{ background: #c9f2d0; color: inherit }}
</style>
<h1>{title}</h1>
<p>Each row as the model reads it, with the text of the chat template. <mark>Marked</mark> tokens are learned.</p>
{rows}
</html>
"""


def rendered(loaded: Loaded, most: int) -> list[RenderedRow]:
    """The first rows of each source."""
    found = []
    for rows in loaded.sources:
        for row in range(min(most, len(rows))):
            part, place = rows.find(row)
            ids_t, learned_t = part.table.tokens(place)
            found.append(RenderedRow(rows.name, rows.place(row), _pieces(loaded, ids_t.tolist(), learned_t != 0)))
    return found


def _pieces(loaded: Loaded, ids: Sequence[int], is_learned_t: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[list[str]]:
    """[learned or read, text] of each stretch of tokens."""
    pieces, start = [], 0
    for is_learned, stretch in groupby(is_learned_t.tolist()):
        end = start + len(list(stretch))
        text = loaded.tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        pieces.append(["learned" if is_learned else "read", text[:MOST_CHARACTERS]])
        start = end
    return pieces


def as_text(row: RenderedRow) -> Text:
    """For the terminal; without colours, brackets ⟦ ⟧ mark what is learned."""
    shown = Text()
    for kind, text in row.pieces:
        shown.append(f"⟦{text}⟧" if kind == "learned" else text, LEARNED if kind == "learned" else READ)
    return shown


def as_html(title: str, rows: Sequence[RenderedRow]) -> str:
    """A page without scripts; all texts are escaped."""
    parts = []
    for row in rows:
        pieces = (
            f"<mark>{html.escape(text)}</mark>" if kind == "learned" else html.escape(text) for kind, text in row.pieces
        )
        parts.append(f"<h2>{html.escape(f'{row.source}, {row.place}')}</h2>\n<pre>{''.join(pieces)}</pre>")
    return PAGE.format(title=html.escape(title), rows="\n".join(parts))
