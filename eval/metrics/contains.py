"""Whether an answer contains the reference, with the normalisation of exact match."""

from __future__ import annotations

import regex

from eval.metrics.exact_match import normalise
from eval.metrics.writing_system import IN_WORD, UNSPACED

_IN_WORD = regex.compile(rf"[[{IN_WORD}]--[{UNSPACED}]]", regex.V1)
_HANGUL = regex.compile(r"\p{Hangul}{2}$")
# Punctuation that exact match removes from words ("Paris's", "Paris,France"); here it separates words, except in "n't".
_BETWEEN = regex.compile(
    r"(?<=\p{L})(?<!n)['’](?=\p{L})|(?<=n)['’](?=\p{L})(?!t)|(?<=\p{L}{2})\.(?=\p{L})"
    r"|(?<=[\p{L}\p{M}])[,:;!?()\[\]\"“”]+(?=[\p{L}\p{N}])|(?<=\p{N})[,:;!?()\[\]\"“”]+(?=\p{L})"
)
# Particles and copula that may follow a Korean word.
_PARTICLES = (
    r"(?:(?:들|님)?(?:은|는|이|가|을|를|의|에|에게|에서|께|께서|로|으로|와|과|랑|이랑|도|만|나|이나|라고|이라고|부터|까지"
    r"|보다|처럼|마다|밖에|이며|이고|입니다|이다|이에요|예요|였다|이었다|였습니다|이었습니다)){1,2}"
)
_WORD_OR_NUMBER = rf"[[{IN_WORD}.:/^-]--[{UNSPACED}]]"  # after `normalise` these signs occur only in numbers and grades


_NO_MINUS = "(?<![负負]|零下|氷点下|영하 ?|マイナス|마이너스 ?|(?:negative|minus|moins|menos|минус) )"  # in words


def contains(prediction: str, reference: str) -> float:
    """1.0 if the prediction contains the reference as whole words or numbers, else 0.0.

    "5" is not in "-5", "15", "2:5" or "5万", and "C" is not in "C++". A Korean word may be followed by particles.
    Scripts without spaces match whole letters. An invisible reference is contained only in an invisible prediction.
    """
    part, whole = normalise(reference), normalise(prediction)
    if part == whole:
        return 1.0
    if not part:
        return 0.0
    return float(_is_inside(part, whole) or _is_inside(part, normalise(_BETWEEN.sub(" ", prediction))))


def _is_inside(part: str, whole: str) -> bool:
    """Both texts are normalised."""
    pattern = _before(part) + regex.escape(part) + _after(part)
    return part in whole and regex.search(pattern, whole, regex.V1) is not None


def _before(part: str) -> str:
    if _IN_WORD.match(part[0]):
        return f"(?<!{_WORD_OR_NUMBER})" + (_NO_MINUS if part[0].isdigit() else "")
    return "(?<!-)" + _NO_MINUS  # "$5" is not in "-$5"


def _after(part: str) -> str:
    if not _IN_WORD.match(part[-1]):
        return r"(?!\p{M})"
    if part[-1].isdigit():  # "5" is in 5명, not in 5만
        return rf"(?![[{_WORD_OR_NUMBER}]--\p{{Hangul}}]|[万萬亿億만억조])"
    end = rf"(?!{_WORD_OR_NUMBER})"
    if _HANGUL.search(part):
        return rf"(?:{_PARTICLES})?{end}"
    return end + (r"(?![+#](?!\w))" if part[-1].isalpha() else "")
