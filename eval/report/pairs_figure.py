"""Draws a table with pairs of shares, such as word frequencies in two corpora: two bars for each row."""

from __future__ import annotations

import base64
from typing import Literal

from eval.report.figure import BASELINE, OTHER, drawable, saved, style
from eval.report.sheets import Sheet
from eval.report.terminal import folded

MOST_ROWS = 15
WIDTH, ROW_HEIGHT, FRAME_HEIGHT, BAR = 7.0, 0.3, 1.9, 0.38  # inches; BAR in rows
LINE = 84  # characters of the title


def draw_pairs(sheet: Sheet, form: Literal["png", "svg"] = "png") -> bytes:
    """Draw columns 1 and 2 (shares from 0 to 1) of the first rows, labelled by column 0."""
    import matplotlib as mpl  # heavy
    from matplotlib.figure import Figure

    rows = sheet.rows[:MOST_ROWS]
    with mpl.rc_context(style()):
        figure = Figure(figsize=(WIDTH, FRAME_HEIGHT + ROW_HEIGHT * len(rows)), layout="constrained")
        axes = figure.subplots()
        for column, colour, shift in ((1, BASELINE, -BAR / 2), (2, OTHER, BAR / 2)):
            places = [place + shift for place in range(len(rows))]
            shares = [100 * (row[column].value or 0.0) for row in rows]
            axes.barh(
                places,
                shares,
                height=BAR,
                color=colour,
                label=folded(drawable(sheet.head[column], f"corpus {column}"), LINE),
            )
        axes.set_yticks(range(len(rows)), [drawable(row[0].text, f"word {k + 1}") for k, row in enumerate(rows)])
        axes.invert_yaxis()
        axes.set_xlabel("% of all words", fontsize=8, color="#4a4f57")
        figure.suptitle(folded(drawable(sheet.title, ""), LINE), fontsize=10, x=0.01, ha="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(frameon=False, fontsize=8, loc="outside lower left")
        return saved(figure, form)


def embedded(sheet: Sheet) -> str | None:
    """The figure in base64; None for a table without pairs."""
    return base64.b64encode(draw_pairs(sheet, "svg")).decode() if sheet.pairs and sheet.rows else None
