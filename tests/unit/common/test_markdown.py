"""Markdown tables: a text stays a text, and every row has its cells."""

from __future__ import annotations

from zerotune.common.markdown import Markup, bold, table


def test_cells_are_texts_and_markup_is_left_alone() -> None:
    rows = [["a|b\nc", "<b>1</b>", ""], [bold("x_y*"), Markup("![p](p.png)"), "中文 😀"]]
    assert table(["name", "value", ""], rows, right=["value"]).splitlines() == [
        "| name | value |  |",
        "|---|---:|---|",
        "| a&#124;b<br>c | &lt;b&gt;1&lt;/b&gt; |  |",
        r"| **x\_y\*** | ![p](p.png) | 中文 😀 |",
    ]


def test_another_way_of_escaping() -> None:
    assert table(["n"], [["a"], [Markup("b")]], escape=str.upper).splitlines()[2:] == ["| A |", "| b |"]
