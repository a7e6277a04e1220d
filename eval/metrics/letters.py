"""The option letter in an answer to a multiple-choice question, Chinese or English."""

from __future__ import annotations

import re

_ALONE = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z'])")
_LETTER = rf"({_ALONE.pattern})(?<!A(?=\s[a-z]))"  # and not the article in "A magnet ..."
_SAID = re.compile(
    rf"(?:答案|选择|选(?!项)|[Aa]nswer|ANSWER)(?:\W{{0,8}}(?:是|为|应|该|选项?|is|option|Option)){{0,4}}[^\w。]{{0,8}}{_LETTER}"
)
_FIRST = re.compile(rf"^\W{{0,4}}{_LETTER}")
_ONLY = re.compile(_LETTER)


def read_letter(text: str, options: int) -> str | None:
    """The letter that the answer names, of the first `options` letters; None where it names none.

    One after "答案", "选" or "answer" counts before the one that the text begins with; else the text must hold exactly
    one letter that stands alone.
    """
    known = {chr(ord("A") + k) for k in range(options)}
    for pattern in (_SAID, _FIRST):
        for found in pattern.finditer(text):
            if found[1] in known:
                return found[1]
    named = set(_ONLY.findall(text)) & known
    return named.pop() if set(_ALONE.findall(text)) & known == named and len(named) == 1 else None
