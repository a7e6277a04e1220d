"""Reads the value of "answer" from JSON objects in a model's output: fenced or not, truncated, or not quite JSON.

Only keys of the outermost object count, in any case, and no placeholders such as "<the number>". Invalid JSON (single
or curly quotes, `{"answer": 1,234}`, `{"answer": \\frac{1}{2}}`) is read leniently; a value that the end of the text
truncates is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

MOST_OBJECTS = 20  # opening braces that are tried: each may take time linear in the text
KEY = "answer"
_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\n?(.*?)```", re.DOTALL)
_PLACEHOLDER = re.compile(r"\s*<[^<>]*>\s*")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "：": ":", "，": ",", "｛": "{", "｝": "}"})
_TEXT = re.compile(  # a closing quote is followed by , : } or ], so that 'it's' is one string
    r"""(?P<quote>["'])(?P<text>(?:\\.|(?!(?P=quote)\s*(?:[,:}\]]|$))[^\\])*+)(?P=quote)""", re.DOTALL
)
_KEY = re.compile(r"""(?<!\w)(?:"([^"\n]{1,40})"|'([^'\n]{1,40})'|(\w{1,40}))\s{0,20}:\s{0,20}""")
_BARE = re.compile(r"""[^"'\[\]\n]*?(?=\s{0,9}(?:,?\s{0,9}[}\n]|,\s{0,9}["']|,\s{0,9}[A-Za-z_]{1,40}\s{0,9}:))""")
LONGEST = 200  # characters of a value without quotes
_LATEX_BRACES = re.compile(r"\{([^{}\n\"']{0,40})\}")


def json_answers(text: str) -> Sequence[str]:
    """The values of "answer", in order; numbers exactly as written.

    From objects in code fences if these have any, else from all.
    """
    fenced = [answer for block in _FENCED.finditer(text) for answer in _answers(block[1])]
    return fenced or list(_answers(text))


def _answers(text: str) -> Iterator[str]:
    loose = text.translate(_QUOTES)
    start, tried = loose.find("{"), 0
    while start >= 0 and tried < MOST_OBJECTS:
        found, end = _strict(text, start) or _lenient(loose, start)
        yield from (answer for answer in found if not _PLACEHOLDER.fullmatch(answer))
        start, tried = loose.find("{", end), tried + 1


def _strict(text: str, start: int) -> tuple[list[str], int] | None:
    """The answers of the JSON object that begins at `start`, and its end; None if it is not valid JSON."""
    try:
        pairs, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return [value for key, value in pairs if key.strip().casefold() == KEY and isinstance(value, str)], end


# Numbers stay strings: 120.0 is not 120. Duplicate keys are kept.
_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=str, strict=False, object_pairs_hook=lambda pairs: pairs
)


def _lenient(text: str, start: int) -> tuple[list[str], int]:
    """Like `_strict`, for invalid JSON; the object ends at its closing brace or the end of the text."""
    depth, position, answers = 0, start, list[str]()
    while position < len(text):
        key = _KEY.match(text, position) if depth == 1 else None
        if key:
            position = key.end()
            if "".join(filter(None, key.groups())).strip().casefold() == KEY and text[position : position + 1] not in (
                "{",
                "[",
            ):
                answer, position = _value(text, position)
                answers += [] if answer is None else [answer]
        elif text[position] in "\"'" and not text[position - 1].isalnum():
            string = _TEXT.match(text, position)
            position = string.end() if string else len(text)  # truncated
        else:
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text[position], 0)
            position += 1
            if depth <= 0:
                break
    return answers, position


def _value(text: str, position: int) -> tuple[str | None, int]:
    """The value at `position`, quoted or bare, and its end; None if it is truncated."""
    if text[position : position + 1] in ("'", '"'):
        string = _TEXT.match(text, position)
        return (_unescaped(string["text"]), string.end()) if string else (None, len(text))
    window = text[position : position + LONGEST]
    same_length = _LATEX_BRACES.sub(lambda found: f"({found[1]})", window)  # hides the braces of \frac{1}{2}
    bare = _BARE.match(same_length)
    return (window[: bare.end()].strip(), position + bare.end()) if bare and bare.end() else (None, position)


def _unescaped(text: str) -> str:
    try:
        found: Any = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text
    return str(found)
