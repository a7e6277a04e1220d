"""Rewrites numbers in a text uniformly: ASCII digits and signs, `a/b` fractions, `^` powers, no LaTeX.

Digits of any width and script become ASCII (１２, ٣, १२), invisible characters are removed, `½` becomes `1/2`, `10²`
becomes `10^2` (NFKC alone would write 102), `\\frac{1}{2}` becomes `1/2`, 负5 and "minus 5" become -5.
"""

from __future__ import annotations

import re
import unicodedata

from eval.metrics.writing_system import composed

NO_NUMBER = "\ufffd"  # replaces a number that cannot be read, such as \frac{x}{2}
_SUPERSCRIPTS = re.compile("[⁺⁻⁰¹²³⁴-⁹]+")
_FRACTION = re.compile(r"(?<=(?P<digit>[0-9]))?\\[dtc]?frac *(?:\{([^{}]{0,40})\} *\{([^{}]{0,40})\}|([0-9]) *([0-9]))")
_WORDS = {
    "times": "×",
    "cdot": "×",
    "div": "÷",
    "pm": "±",
    "sqrt": "√",
    "pi": "π",
    "over": "/",
    "approx": "≈",
    "circ": "°",
    "dfrac": NO_NUMBER,
    "tfrac": NO_NUMBER,
    "cfrac": NO_NUMBER,
    "frac": NO_NUMBER,
    "left": "",
    "right": "",
    "boxed": "",
    "fbox": "",
    "text": "",
    "textbf": "",
    "mathrm": "",
    "mathbf": "",
}
# A minus sign in words before a digit: always, or only if it cannot be a subtraction.
_MINUS = re.compile(
    r"(?:(?P<surely>零下|氷点下|영하|(?<![^\W\d_])negative(?= ))"
    r"|负|負|マイナス|마이너스|(?<![^\W\d_])(?:minus|moins|menos|минус)(?= )) ?(?=[^\w\s]?\.?[0-9])",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"(?:^|[^\w)\]}%]|[是为為约約至到达達得于於即了はがは는은]"
    r"|(?<![^\W\d_])(?:is|are|was|be|to|of|at|get|gets|gives?|equals?|about|est|es|это))$",
    re.IGNORECASE,
)
_LONGEST_BEFORE = 12  # characters that `_STATED` needs
_WORD = re.compile(rf"\\({'|'.join(_WORDS)})(?![A-Za-z])")
_JSON_ESCAPES = (("\x08", r"\b"), ("\x0c", r"\f"), ("\times", r"\times"), ("\text", r"\text"))  # "\boxed" in a string


def plain_digits(text: str) -> str:
    """Rewrite the numbers of a text uniformly."""
    if not text.isascii():
        text = composed(text)
        text = _SUPERSCRIPTS.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
        text = text.translate(_PLAIN)
    for escape, meant in _JSON_ESCAPES:
        text = text.replace(escape, meant)
    text = _without_latex(text) if "\\" in text or "{,}" in text or "^{" in text else text
    return _MINUS.sub(_minus, text)


def _minus(found: re.Match[str]) -> str:
    """ "-" for a minus sign, "±" for an unclear one ("x minus 5", 欺负5); "10 minus 5" is left unchanged."""
    before = found.string[max(found.start() - _LONGEST_BEFORE, 0) : found.start()].rstrip()
    if before[-1:].isdigit() and found[0].lower() == "minus ":
        return found[0]
    return "-" if found["surely"] or _STATED.search(before) else "±"


def _without_latex(text: str) -> str:
    text = text.replace("{,}", ",")
    text = re.sub(r"(?<=[0-9])\\[,!](?=[0-9])", "", text)
    text = _WORD.sub(lambda found: _WORDS[found[1]], _FRACTION.sub(_fraction, text))
    text = re.sub(r"\^ ?\{ ?([-+]?[0-9]{1,9}) ?\}", r"^\1", text)
    return re.sub(r"\\([%$&#_{}])", r"\1", re.sub(r"\^ ?\{? ?°\}?", "°", text))


def _fraction(found: re.Match[str]) -> str:
    over, under = (found[2], found[3]) if found[2] is not None else (found[4], found[5])
    parts = [part.strip() for part in (over, under)]
    space = " " if found["digit"] else ""  # 1\frac{1}{2} is 1 1/2
    return f"{space}{'/'.join(parts)}" if all(re.fullmatch("[0-9]+", part) for part in parts) else NO_NUMBER


def _plain(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if character in _SAME:
        return _SAME[character]
    kind = unicodedata.decomposition(character).partition(" ")[0]
    if kind in ("<wide>", "<narrow>", "<small>"):
        return unicodedata.normalize("NFKC", character)
    if kind == "<fraction>":
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    category = unicodedata.category(character)
    return " " if category == "Zs" else "" if category == "Cf" or "\ufe00" <= character <= "\ufe0f" else character


_SAME = {"\u2044": "/", "\u2215": "/", "٫": ".", "٬": ",", "٪": "%", "’": "'", "∗": "*", "⋅": "×", "·": "×", "–": "-"}
_SAME |= {"\u2011": "-", "\u2010": "-", "\u20e3": ""}  # the last is the keycap around a digit


class _Characters(dict[int, str]):
    """A table for `str.translate`, filled on demand."""

    def __missing__(self, code: int) -> str:
        self[code] = _plain(chr(code))
        return self[code]


_PLAIN = _Characters()
