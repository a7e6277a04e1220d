"""The "answer" of the JSON objects that a model was asked for: fenced or not, whole, broken off, or no proper JSON.

Only an object's own key counts, in any case, not one of an object inside it, and no placeholder such as "<the number>".
What is no JSON (single or curly quotes, `{"answer": 1,234}`, `{"answer": \\frac{1}{2}}`) is read leniently; a value
that the text's end has cut off is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

MOST_OBJECTS = 20  # braces that are tried: each may cost time in the length of the text
KEY = "answer"
_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\n?(.*?)```", re.DOTALL)
_PLACEHOLDER = re.compile(r"\s*<[^<>]*>\s*")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "：": ":", "，": ",", "｛": "{", "｝": "}"})
_TEXT = re.compile(  # a closing quote stands before , : } or ], so that 'it's' is one text
    r"""(?P<quote>["'])(?P<text>(?:\\.|(?!(?P=quote)\s*(?:[,:}\]]|$))[^\\])*+)(?P=quote)""", re.DOTALL
)
_KEY = re.compile(r"""(?<!\w)(?:"([^"\n]{1,40})"|'([^'\n]{1,40})'|(\w{1,40}))\s{0,20}:\s{0,20}""")
_BARE = re.compile(r"""[^"'\[\]\n]*?(?=\s{0,9}(?:,?\s{0,9}[}\n]|,\s{0,9}["']|,\s{0,9}[A-Za-z_]{1,40}\s{0,9}:))""")
LONGEST = 200  # characters of a value without quotes
_LATEX_BRACES = re.compile(r"\{([^{}\n\"']{0,40})\}")


def json_answers(text: str) -> Sequence[str]:
    """What the objects of the text have under "answer", in their order; numbers exactly as written.

    Those in code fences, if there is one; else all.
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
    """The answers of the JSON object that begins there, and where it ends."""
    try:
        pairs, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return [value for key, value in pairs if key.strip().casefold() == KEY and isinstance(value, str)], end


# Numbers stay texts: 120.0 is not 120. Keys that stand there twice stay apart.
_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=str, strict=False, object_pairs_hook=lambda pairs: pairs
)


def _lenient(text: str, start: int) -> tuple[list[str], int]:
    """The same for what is no JSON; it ends with its brace, or the text."""
    depth, place, answers = 0, start, list[str]()
    while place < len(text):
        key = _KEY.match(text, place) if depth == 1 else None
        if key:
            place = key.end()
            if "".join(filter(None, key.groups())).strip().casefold() == KEY and text[place : place + 1] not in (
                "{",
                "[",
            ):
                answer, place = _value(text, place)
                answers += [] if answer is None else [answer]
        elif text[place] in "\"'" and not text[place - 1].isalnum():
            said = _TEXT.match(text, place)
            place = said.end() if said else len(text)  # cut off
        else:
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text[place], 0)
            place += 1
            if depth <= 0:
                break
    return answers, place


def _value(text: str, place: int) -> tuple[str | None, int]:
    """What stands behind a key, quoted or bare, and where it ends; None where the text's end has cut it off."""
    if text[place : place + 1] in ("'", '"'):
        said = _TEXT.match(text, place)
        return (_unescaped(said["text"]), said.end()) if said else (None, len(text))
    window = text[place : place + LONGEST]
    same_length = _LATEX_BRACES.sub(lambda found: f"({found[1]})", window)  # braces of \frac{1}{2} end nothing
    bare = _BARE.match(same_length)
    return (window[: bare.end()].strip(), place + bare.end()) if bare and bare.end() else (None, place)


def _unescaped(text: str) -> str:
    try:
        found: Any = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text
    return str(found)
