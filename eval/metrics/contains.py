"""Whether a longer answer says the reference somewhere, forgiving about form as exact match is."""

from __future__ import annotations

import regex

from eval.metrics.exact_match import normalise
from eval.metrics.script import IN_WORD, UNSPACED

_IN_WORD = regex.compile(rf"[[{IN_WORD}]--[{UNSPACED}]]", regex.V1)
_WORD_OR_NUMBER = rf"[[{IN_WORD}.:/^-]--[{UNSPACED}]]"  # after `normalise` these signs stand only in numbers and grades


def contains(prediction: str, reference: str) -> float:
    """1.0 where the reference stands in the prediction as whole words or numbers ("5" is not in "-5", "15" or "2:5",
    "C" not in "C++"), or, in a script without spaces, as whole letters; else 0.0.

    Nothing visible is contained only in nothing visible.
    """
    part, whole = normalise(reference), normalise(prediction)
    if part == whole:
        return 1.0
    if not part or part not in whole:
        return 0.0
    return float(regex.search(_before(part) + regex.escape(part) + _after(part), whole, regex.V1) is not None)


def _before(part: str) -> str:
    if _IN_WORD.match(part[0]):
        return f"(?<!{_WORD_OR_NUMBER})"
    return "(?<!-)"  # "$5" is not in "-$5"


def _after(part: str) -> str:
    if not _IN_WORD.match(part[-1]):
        return r"(?!\p{M})"
    return rf"(?!{_WORD_OR_NUMBER})" + (r"(?![+#](?!\w))" if part[-1].isalpha() else "")
