"""Exact match of short answers after normalisation.

English follows SQuAD (arXiv:1606.05250): case, punctuation, articles and extra spaces are ignored. Chinese follows CMRC
2018 (arXiv:1810.07366): punctuation and spaces between characters are ignored. These differences keep distinct answers
distinct, and no step may remove a whole text:

- Numbers keep sign, decimal point, colon, fraction bar, exponent, percent and currency sign. Other punctuation between
  digits separates ("3,5" is not "35"), but thousands separators are removed ("1,234" is "1234").
- A dash or slash separates ("well-known" is "well known", "10-20" is not "1020").
- The letter A is not always an article: "vitamin A", "A. Paris", "the answer is A".
- `$x$` is LaTeX for x, not a currency.
- C++, C# and C are distinct; so are the grades and blood groups B+, B- and B.
"""

from __future__ import annotations

import unicodedata

import regex

from eval.metrics.writing_system import IN_WORD, UNSPACED, compatible, folded

LETTER_A = "\u1d00"  # small capital A: the normalised letter A where it is not an article

_LETTER = rf"[[{IN_WORD}]--[{UNSPACED}]]"  # of a script with spaces between words
_UNITS = "[年月日号点时分秒度元岁章节页级层楼周天万亿千百]"
_HYPHENS = {ord(hyphen): "-" for hyphen in "\u2010\u2012\u2013\u2212"}  # hyphen, figure dash, en dash, minus sign
_SAME = _HYPHENS | {0x2044: "/", 0x2215: "/", 0x2236: ":", 0x066A: "%", 0x066B: ".", 0x066C: ","}

# Digits that NFKC would join to their neighbours: exponents, ½ after a digit, enclosed numbers.
_SPECIAL_NUMBER = regex.compile(r"[⁺⁻]?[⁰¹²³⁴-⁹]+|[\p{No}--[⁰¹²³⁴-⁹₀-₉]]", regex.V1)
_EXPONENT = regex.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")

_ARTICLE_A = regex.compile(
    rf"(?<![{IN_WORD}'’.-])[aA](?=\s+[\"'“‘(\[]*(?:\p{{Sc}}|[0-9]|\p{{Latin}}))"
    r"(?!\s+\p{L}(?![\w'’-]|\.\w))"  # another single letter: "A B", but "a U.S. city"
    r"(?!\s+(?:and|or|nor|is|are|was|were|has|had|does|did|would|could|should|to|of|in|than|because|since|which|that|vs"
    r"|the|an)\b(?!-))"
)
_ALL_CAPITALS = regex.compile(r"^\P{Ll}*$")
_BEFORE_ARTICLE = regex.compile(
    r"(?:^|[^\p{L}\p{M}\p{N}\s'’)\]]\s*|\n\s*|(?<!\w)(?:of|in|on|upon|for|with|to|at|from|by|as|like|into|than|what|such"
    r"|and|or|but|not)\s+)$",
    regex.IGNORECASE,
)
_LONGEST_BEFORE = 12  # characters that `_BEFORE_ARTICLE` needs
_ARTICLES = regex.compile(rf"(?<![{IN_WORD}])(?:an|the)(?![{IN_WORD}])")
_LONE_A = regex.compile(rf"(?<!{_LETTER})a(?!{_LETTER})", regex.V1)

# LaTeX's $x$, by Pandoc's rule: no space inside either sign, no letter or digit outside.
_MATH = regex.compile(
    r"(?<![\p{L}\p{N}\\$])(\$\$?)(?=[^\s$])([^$\n]*[^\s$\\])(?<!US|CA|AU|HK|NT|SG|NZ)\1(?![\p{L}\p{N}$])"
)
_DIGIT = regex.compile("[0-9]")
_APART = regex.compile(r"(?<=[0-9])\s+(?=[.,][0-9])")  # "EUR0 .12", "415 ,000" of tokenised texts
_THOUSANDS = regex.compile(r"(?<![0-9])(?<![0-9][.,])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?:,[0-9]{2})+,[0-9]{3})(?!,?[0-9])")
_CHAIN = regex.compile("[0-9]+(?:/[0-9]+){2,}")  # a date, not a fraction
_MINUS_INSIDE = regex.compile(rf"(?<!{_LETTER})(\p{{Sc}})-(?=\.?[0-9])", regex.V1)
_PLUS = regex.compile(r"(?<![\w)\]%+\p{Sc}])\+(?=\p{Sc}?\.?[0-9])")
_BARE_POINT = regex.compile(rf"(?<!{_LETTER}|[.%])\.(?=[0-9])", regex.V1)
_PUNCTUATION = regex.compile(
    rf"(?P<sign>(?<!{_LETTER}|[-^%°\p{{Sc}}]|[0-9]{_UNITS}{{1,3}})-(?=\p{{Sc}}?[0-9]))"
    rf"|(?P<kept>(?<=[0-9])[.:/](?=[0-9])|(?<=\^)-(?=[0-9])|(?<=[0-9])\s*[%‰‱]|(?<=(?<!{_LETTER}[\p{{P}}`]*)[a-zᴀ])#"
    rf"|(?<=(?<!{_LETTER}[\p{{P}}`]*)(?:[a-zᴀ]|ab))-(?![\p{{P}}`]*{_LETTER}|-))"
    r"|(?P<apart>[\p{Pd}/\\_፡་]|(?<=[0-9])[[\p{P}`]--[-]]+(?=-?[0-9]))"
    r"|[\p{P}`]\p{M}*",
    regex.V1,
)
_SPACE_AROUND_SIGN = regex.compile(r"\s*([=≈≠<>≤≥])\s*|(?<![0-9]\s?)(\p{Sc})\s+(?=[0-9])")
_SPACE_BY_UNSPACED = regex.compile(rf"(?<=[{UNSPACED}])\s+(?!-)|\s+(?=[{UNSPACED}])")


def normalise(text: str) -> str:
    """Normalise an answer for comparison: equal for any case, width and Unicode form.

    Idempotent, and empty only for an invisible text. Words are in lower case and separated by one space, without spaces
    next to an unspaced script. "-" before a digit is a minus sign, with a space before it except at the start. ".", ":"
    and "/" occur only inside numbers. `LETTER_A` is the letter A where it is not an article.
    """
    text = compatible(text if text.isascii() else _SPECIAL_NUMBER.sub(_special_number, text))
    text = _MATH.sub(r"\2", text) if "$" in text else text
    text = folded(_without_article_a(text))
    text = _with_plain_numbers(text if text.isascii() else text.translate(_SAME))
    text = _PLUS.sub("", _unless_nothing_left(_PUNCTUATION.sub(_replacement, text), text))
    text = _LONE_A.sub(LETTER_A, _unless_nothing_left(_ARTICLES.sub(" ", text), text))
    text = _SPACE_AROUND_SIGN.sub(r"\1\2", " ".join(text.split()))
    return str(_SPACE_BY_UNSPACED.sub("", text))


def exact_match(prediction: str, reference: str) -> float:
    """1.0 if both are equal after `normalise`, else 0.0."""
    return float(prediction == reference or normalise(prediction) == normalise(reference))


def _unless_nothing_left(shorter: str, text: str) -> str:
    return shorter if shorter.strip() else text


def _special_number(found: regex.Match[str]) -> str:
    """10² as 10^2, 1½ as 1 1/2, ①② as 1 2."""
    plain = unicodedata.normalize("NFKC", found[0])
    return f"^{plain}" if _EXPONENT.fullmatch(found[0]) else f" {plain} "


def _with_plain_numbers(text: str) -> str:
    """1,234 as 1234, dates without slashes, $-5 as -$5, +5 as 5, .5 as 0.5."""
    if not _DIGIT.search(text):
        return text
    text = _APART.sub("", text)
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _CHAIN.sub(lambda number: number[0].replace("/", " "), text)
    return str(_BARE_POINT.sub("0.", _PLUS.sub("", _MINUS_INSIDE.sub(r"-\1", text))))


def _without_article_a(text: str) -> str:
    """Remove the article "a". A capital A in mixed-case text is an article only after prepositions and the like."""
    all_capitals = _ALL_CAPITALS.match(text) is not None

    def replacement(found: regex.Match[str]) -> str:
        before = text[max(found.start() - _LONGEST_BEFORE, 0) : found.start()]
        return " " if found[0] == "a" or all_capitals or _BEFORE_ARTICLE.search(before) else "A"

    return _unless_nothing_left(_ARTICLE_A.sub(replacement, text), text)


def _replacement(found: regex.Match[str]) -> str:
    match found.lastgroup:
        case "sign":
            return " -"
        case "kept":
            return str(found[0]).strip()
        case "apart":
            return " "
    return ""
