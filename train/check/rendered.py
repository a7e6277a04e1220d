"""Rows as a model reads them, with the learned tokens marked: for the terminal, and as HTML to share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from train.check.findings import RenderedRow
from train.check.load import Loaded
from train.data.proof import Inference, first_windows

STYLES = {"learned": "bold green", "read": "dim", "omitted": "italic"}
MOST_CHARACTERS, MOST_IN_TERMINAL = 20_000, 1_500  # of a row; its middle is left out
PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.3em }} h2 {{ font-size: 1em; overflow-wrap: anywhere }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; padding: .7em;
  border: 1px solid #8888; border-radius: 4px }}
mark {{ background: light-dark(#b9efc4, #17562a); color: inherit }}
i {{ opacity: .7 }}
</style>
<h1>{title}</h1>
<p>Each row as the model reads it, with the text of the chat template. <mark>Marked</mark> tokens are learned.</p>
{rows}
</html>
"""


def rendered(loaded: Loaded, most: int) -> list[RenderedRow]:
    """The first rows of each source; of a long text the first window."""
    found = []
    for rows in loaded.sources:
        for part, number in first_windows(rows.parts, most):
            pieces = _pieces(loaded.inference, *loaded.inference.tokens(part, number))
            found.append(RenderedRow(rows.name, part.place(number), cut(pieces)))
    return found


def _pieces(inference: Inference, ids: Sequence[int], is_learned: Sequence[bool]) -> list[list[str]]:
    """[learned or read, text] of each stretch of tokens."""
    pieces, start = [], 0
    for kind, stretch in groupby(is_learned):
        end = start + len(list(stretch))
        before = inference.text(ids[max(start - 1, 0) : start])  # decoders drop the space of a first token
        text = inference.text(ids[max(start - 1, 0) : end])
        pieces.append(["learned" if kind else "read", text[len(before) :]])
        start = end
    return pieces


def cut(pieces: Sequence[Sequence[str]], most: int = MOST_CHARACTERS) -> list[list[str]]:
    """The pieces, without the middle of more than `most` characters."""
    total = sum(len(text) for _, text in pieces)
    if total <= most:
        return [[kind, text] for kind, text in pieces]
    half = most // 2
    return [
        *_between(pieces, 0, half),
        ["omitted", f" [{total - 2 * half:,} characters are left out] "],
        *_between(pieces, total - half, total),
    ]


def _between(pieces: Sequence[Sequence[str]], start: int, end: int) -> list[list[str]]:
    found, place = [], 0
    for kind, text in pieces:
        part = text[max(start - place, 0) : max(end - place, 0)]
        if part:
            found.append([kind, part])
        place += len(text)
    return found


def as_text(row: RenderedRow) -> Text:
    """For the terminal; without colours, brackets ⟦ ⟧ mark what is learned."""
    shown = Text()
    for kind, text in cut(row.pieces, MOST_IN_TERMINAL):
        shown.append(f"⟦{text}⟧" if kind == "learned" else text, STYLES[kind])
    return shown


def as_html(title: str, rows: Sequence[RenderedRow]) -> str:
    """A page without scripts; all texts are escaped."""
    tags = {"learned": "mark", "read": "span", "omitted": "i"}
    parts = []
    for row in rows:
        pieces = (f"<{tags[kind]}>{html.escape(text)}</{tags[kind]}>" for kind, text in row.pieces)
        parts.append(f"<h2>{html.escape(f'{row.source}, {row.place}')}</h2>\n<pre>{''.join(pieces)}</pre>")
    return PAGE.format(title=html.escape(title), rows="\n".join(parts))
