"""The terms by which a page is found; split_query.js finds the same ones in a query."""

from __future__ import annotations

import re

CHINESE = re.compile("[\u3400-\u9fff]+")
WORD = re.compile(r"\w+")


def search_terms(text: str) -> list[str]:
    """Words; of Chinese, which has no spaces to cut at, all pairs of neighbouring characters."""
    terms: list[str] = WORD.findall(CHINESE.sub(" ", text))
    for run in CHINESE.findall(text):
        terms += [run] if len(run) == 1 else [run[k : k + 2] for k in range(len(run) - 1)]
    return terms
