"""Exact match of short answers, forgiving about form in Chinese and English.

English follows SQuAD's evaluation (arXiv:1606.05250): case, punctuation, articles and extra spaces do not count.
Chinese follows CMRC 2018's (arXiv:1810.07366): punctuation and spaces between characters do not count. Three things
differ, each to keep different answers apart: numbers keep their sign and decimal point, a dash or slash separates
("10-20" is not "1020"), and no step may leave nothing of a text ("A" stays an answer).
"""

from __future__ import annotations

import re
import unicodedata

CJK = "\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_NUMBER = re.compile(r"(?<![\w.])[-\u2212](?=\.?[0-9])|(?<=[0-9])[.](?=[0-9])|(?<![\w.])[.](?=[0-9])")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SPACE_BY_CJK = re.compile(rf"(?<=[{CJK}])\s+|\s+(?=[{CJK}])")


def normalise(text: str) -> str:
    """The form in which answers are compared; applying it twice changes nothing, and only blank text becomes empty."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text)
    text = _THOUSANDS.sub(lambda number: number.group().replace(",", ""), text)
    text = _unless_nothing_left(_without_punctuation(text), text)
    text = _unless_nothing_left(_ARTICLES.sub(" ", text), text)
    return _SPACE_BY_CJK.sub("", " ".join(text.split()))


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where both are the same answer after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def _unless_nothing_left(shorter: str, text: str) -> str:
    return shorter if shorter.strip() else text


def _without_punctuation(text: str) -> str:
    kept = {match.start() for match in _NUMBER.finditer(text)}
    return "".join(c.replace("\u2212", "-") if i in kept else _outside_numbers(c) for i, c in enumerate(text))


def _outside_numbers(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Pd" or character in "/_":
        return " "
    return "" if category.startswith("P") or character == "`" else character
