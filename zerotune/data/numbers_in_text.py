"""Finds the numbers of a text that have one value, so that each can be written as a token with its value beside it.

docs/numbers.md states each rule, and what they do not know. What is ambiguous (1,5; 1/2) or names something (dates,
versions, phone numbers, ids) stays text, so that no wrong value is learned.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from zerotune.data.fields import RowError

NUM = "<NUM>"  # what stands in a text for each number
RULES_VERSION = 3  # raise it when the same text gives other numbers
LARGEST = 1e300
SHOWN_CHARACTERS = 40
Span = tuple[int, int]  # [start, end) in characters

# Letters that glue: in scripts with capitals, a letter in front of a digit makes it part of a name (H2O).
_L = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f\u0531-\u058f\u1e00-\u1fff"
_MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY = "(?:3[01]|[12]?[0-9])(?:st|nd|rd|th|er)?"
# Of other languages, by their first letters; only with a year, because they begin other words too.
_MONTHS = (
    "(?i:jan|ene|gen|f[eé]v|feb|m[aä]r|apr|avr|abr|ma[giy]|jun|jui|giu|jul|lug|ao[uû]|aug|ago|sep|set|okt|oct|ott|out"
    f"|nov|d[eé]c|dez|dic|янв|фев|апр|мая|июн|июл|авг|сен|окт|ноя|дек)[{_L}]{{0,7}}"
)
_RUSSIAN = "(?:января|февраля|марта|апреля|мая|июня|июля|августа|сентября|октября|ноября|декабря)"
_YEAR = "[0-9]{4}(?![0-9])"
_CODE = "(?:USD|EUR|GBP|CNY|RMB|JPY|CHF|HKD|INR|KRW|AUD|CAD|Rs)"
_TIGHT = rf"[0-9{_L}_)\]}}%°.+\u2212-]"  # no sign stands behind it
# Everything that touches a digit, through characters that join: one number, or two, or text. Possessive, and only at
# the start of a word: linear in the length of a text.
_JOIN = rf"(?:[-./](?=[0-9{_L}_])|(?<=[0-9])(?:[,:'’\u00a0\u2009\u202f]|\^-?)(?=[0-9])|(?<=[{_L}])\+(?=[0-9]))"
_LETTERS = rf"(?:[{_L}_]++(?:[-./](?=[0-9{_L}_])|\+(?=[0-9]))?+)*+"
_START = rf"(?<![0-9{_L}_])(?<![0-9{_L}_][-./])(?<![{_L}_]\+)"
_DIGITS_ON = rf"[0-9][0-9{_L}_]*+(?:{_JOIN}[0-9{_L}_]++)*+"
_RUN = rf"{_START}(?:(?:(?<!\.)\.(?=[0-9]))|{_LETTERS}){_DIGITS_ON}"
_TEXT = "|".join((  # never numbers; those that begin alike behind one look at their first character, for speed
    r"(?=[hw])(?:https?://|www\.)[^\s<>\"\u3000-\u9fff\uff00-\uffef]+",
    rf"(?=[JFMASOND])(?<![{_L}]){_MONTH}(?: {_DAY}(?![0-9{_L}.:%])(?:,? {_YEAR})?|,? {_YEAR})",
    r"(?=[0-9+(\u2212-])(?:" + "|".join((
        rf"(?<![0-9.,{_L}])(?:" + "|".join((
            rf"{_DAY} (?:of )?{_MONTH}(?![{_L}])(?:,? {_YEAR})?",
            rf"{_DAY}\.? (?:de )?{_MONTHS}\.?(?: de)? {_YEAR}",
            rf"{_DAY} {_RUSSIAN}(?![{_L}])",
            rf"[0-9]{{1,2}}(?::[0-9]{{2}}){{0,2}} ?(?:[ap]m|[AP]M|[ap]\.m\.)(?![{_L}])",
            rf"[0-9]{{1,2}}(?:[.:][0-9]{{2}})? ?Uhr(?![{_L}])(?: [0-9]{{1,2}}(?![0-9]))?",
            r"[0-9]{1,2} [hч] [0-5][0-9](?![0-9]| ?min)",
        )) + ")",
        r"(?<![0-9])[0-9]{4} ?[年년](?: ?[0-9]{1,2} ?[月월](?: ?[0-9]{1,2} ?[日号일])?)?",
        r"(?<![0-9.])[0-9]{1,2}(?:" + "|".join((
            r" ?[月월](?: ?[0-9]{1,2} ?[日号일])?",
            r"[点时時][0-9]{1,2}分(?:[0-9]{1,2}秒)?",
            r" ?시(?!간)(?: ?[0-9]{1,2} ?분)?(?: ?[0-9]{1,2} ?초)?",  # 3시간: three hours
        )) + ")",
        rf"(?<!{_TIGHT})[-\u2212](?:[A-Z]{{0,3}}[$£¥฿\u20a0-\u20cf＄￡￥￦]|{_CODE}) ?\.?{_DIGITS_ON}",  # -$5
        r"\+[0-9][0-9 ()-]{6,}[0-9]",
        r"\([0-9]{2,5}\)[ -]?[0-9]{3,4}[ -][0-9]{4}(?![0-9])",
        r"(?<![0-9.,])1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9]|[.,][0-9])",
    )) + ")",
))  # fmt: skip
_ANY_DIGIT = re.compile("[0-9]")
_FOUND = re.compile(rf"(?P<text>{_TEXT})|(?P<run>{_RUN})")

_WHOLE = (
    r"(?:[0-9]{1,3}(?P<by>[,'’\u00a0\u2009\u202f])[0-9]{3}(?:(?P=by)[0-9]{3})*|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
    "|0|[1-9][0-9]*)"
)
_PLAIN = r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?|[1-9][0-9]{{0,2}}(?:\.[0-9]{{3}})+,[0-9]+"
_UNIT = rf"(?P<unit>(?:[-/]?[{_L}]+(?:[-/.][{_L}]+)*)?)"
_ONE = re.compile(rf"(?P<number>{_NUMBER}){_UNIT}")
_RANGE = re.compile(rf"(?P<low>{_PLAIN})-(?P<high>{_PLAIN}){_UNIT}")
_POWER = re.compile(  # without a group: a power that is not understood
    r"(?: |\\,)?(?:[×x*·⋅]|\\times|\\cdot)(?: |\\,)?10(?:"
    r"(?:\^(?P<brace>\{)?(?P<plain>[+\u2212-]?[0-9]{1,3})(?(brace)\})|(?P<raised>[⁺⁻]?[⁰¹²³⁴-⁹]{1,3}))"
    r"(?![0-9^⁰¹²³⁴-⁹]|\.[0-9])|(?=[\^⁺⁻⁰¹²³⁴-⁹]))"
)
_CURRENCY = re.compile(rf"{_CODE}(?=[0-9.])")
_OTHER_BASE = re.compile("0[xXbBoO]")
_LIKE_HASH = re.compile("[0-9]+[eE][0-9]+")
_TOKENISED = re.compile(" @([-,.])@ ")  # as in WikiText: 1 @,@ 234
_GERMAN = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+")
_GROUPS = str.maketrans("", "", ",'’\u00a0\u2009\u202f")
_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹\u2212", "+-0123456789-")

_MINUS, _PLUS = "-\u2212", "+"
_NO_SIGN_AFTER = re.compile(_TIGHT)
_NOT_FROM = re.compile("|".join((  # where no number begins, with its sign
    r"(?<=[#№第%@&^\\])",  # #5, 第5: which one, not how many; %20, &#39; are codes
    "(?<=[aA]r[xX]iv[: ])|(?<=[aA]r[xX]iv: )",
    rf"(?<=[\^_}}\]{_L}]\{{)|(?<=[0-9]\\[,;:! ])|(?<=[0-9]\{{,\}})",  # LaTeX: x_{5}, \frac{1}{2}, 5\,000, 5{,}000
    r"(?<=[(\[{（])[-+\u2212]?[0-9]{1,3}(?:,[0-9]{2,3})+(?:\.[0-9]+)?[)\]}）,;]",  # (3,400)
)))  # fmt: skip
# 1 234; 6.022 140 76: from the second group on, and behind the first
_IN_GROUPS = re.compile(r"(?<=[0-9] )(?<![0-9]{4} )(?=[0-9]{3}(?![0-9]))|(?<=[0-9] [0-9]{3} )(?=[0-9])")
_BEFORE_GROUPS = re.compile(r"(?<![0-9]{4}) [0-9]{3}(?![0-9])")
_SPACED = re.compile(  # whole numbers with spaces between; only at the first, so that a long list is read once
    rf"(?<![0-9{_L}_.,:/'’+\u2212-])(?<![0-9] )(?:0|[1-9][0-9]{{0,8}}+)(?: (?:0|[1-9][0-9]{{0,8}}+)){{2,}}+"
    rf"(?![0-9{_L}_]| [0-9]|[-.,:/'’^][0-9])"
)
_SPOILS = re.compile("|".join((  # behind digits
    r" ?[\u00bc-\u00be\u2150-\u215f]|[ 又][0-9]{1,3}/[0-9]|\\[cdt]?frac",  # 5½, 5 1/2
    r"[\^\ufe0f\u20e3\u00b2\u00b3\u00b9\u2070-\u208e]",  # 10², keycaps, 101₂
    r"\\[,;:! ]|\{,\}",  # 5\,000, 5{,}000
)))  # fmt: skip


class Number(NamedTuple):
    """A number of a text. value: the nearest float64. text[start:end] is its spelling, with its sign."""

    value: float
    start: int
    end: int


@dataclass(frozen=True)
class NumberedText:
    """A text whose numbers are tokens.

    text: with NUM for each number. values: of each. spellings: what it stands for in the original text.
    """

    text: str
    values: tuple[float, ...] = ()
    spellings: tuple[str, ...] = ()

    @property
    def original(self) -> str:
        """The text as it was, character by character."""
        first, *rest = self.text.split(NUM)
        return first + "".join(spelling + piece for spelling, piece in zip(self.spellings, rest, strict=True))


def numbered(
    text: str, spans: Sequence[Span] = (), fixed: re.Pattern[str] | None = None
) -> tuple[NumberedText, list[Span]]:
    """(the text with its numbers as tokens, the same spans in it). No number crosses the border of a span: a prompt is
    read alone at inference.

    fixed: matches parts that stay text, such as special tokens.

    Raises:
        RowError: A number exceeds LARGEST, or the text contains NUM itself.
    """
    if NUM in text:
        raise RowError(f"{NUM} in the text: it stands for a number; write the number, or something else")
    cuts = sorted({0, len(text), *(border for span in spans for border in span)})
    found = [
        Number(number.value, start + number.start, start + number.end)
        for start, end in pairwise(cuts)
        for number in find_numbers(text[start:end], fixed)
    ]
    if not found:
        return NumberedText(text), list(spans)
    ends = [0, *(number.end for number in found)]
    starts = [*(number.start for number in found), len(text)]
    pieces = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    grown = list(accumulate(len(NUM) - (number.end - number.start) for number in found))

    def moved(border: int) -> int:
        before = bisect_right(ends, border) - 1  # numbers that end at or before it
        return border + (grown[before - 1] if before else 0)

    values, spellings = tuple(n.value for n in found), tuple(text[n.start : n.end] for n in found)
    return NumberedText(NUM.join(pieces), values, spellings), [(moved(a), moved(b)) for a, b in spans]


def find_numbers(text: str, fixed: re.Pattern[str] | None = None) -> list[Number]:
    """The numbers of a text, in order. fixed, errors: see `numbered`."""
    if not (marks := [found.start() for found in _TOKENISED.finditer(text)]):
        return _find_numbers(text, fixed)
    joints = [start - 4 * k for k, start in enumerate(marks)]  # where the text without marks has their character

    def place(at: int) -> int:
        return at + 4 * bisect_left(joints, at)

    joined = _find_numbers(_TOKENISED.sub(r"\1", text), fixed)
    return [Number(number.value, place(number.start), place(number.end)) for number in joined]


def _find_numbers(text: str, fixed: re.Pattern[str] | None) -> list[Number]:
    plain = text if text.isascii() else _WIDE_COMMA.sub(",", text).translate(_DIGITS)
    kept = [found.span() for found in fixed.finditer(text)] if fixed else []
    numbers: list[Number] = []
    if not _ANY_DIGIT.search(plain):
        return numbers
    list_end = 0
    for found in _FOUND.finditer(plain):
        if found["run"] is not None and not any(a < found.end() and found.start() < b for a, b in kept):
            if plain.startswith(" ", found.end()) and (spaced := _SPACED.match(plain, found.start())):
                list_end = spaced.end() if _is_list(spaced[0]) else list_end
            numbers += _in_run(plain, found, numbers[-1].end if numbers else 0, found.start() < list_end)
    for number in numbers:
        if abs(number.value) > LARGEST:
            shown = text[number.start : number.end]
            shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
            raise RowError(f"number too large: {shown}; the largest is {LARGEST:g}")
    return numbers


def _is_list(spaced: str) -> bool:
    """Whether numbers with spaces between are a list rather than groups of three: 100 200 300, not 1 234 567 890."""
    first, *rest = spaced.split(" ")
    numbers = [int(first), *map(int, rest)]
    steps = {after - before for before, after in pairwise(numbers)}
    if len(steps) == 1:
        return 0 < abs(min(steps)) <= min(numbers)  # not 123 456 789
    may_be_groups = first != "0" and len(first) <= 3 and all(len(group) == 3 for group in rest)
    return not may_be_groups and len(rest) > 2 and (min(steps) > 0 or max(steps) < 0)


def _in_run(plain: str, found: re.Match[str], taken: int, is_listed: bool) -> Iterator[Number]:
    """The numbers in a run. taken: the end of the number before. is_listed: whether it belongs to a list."""
    code = _CURRENCY.match(found["run"])
    start, end = found.start() + (code.end() if code else 0), found.end()
    run, sign = plain[start:end], _sign(plain, start)
    if start < taken or _NOT_FROM.match(plain, start - len(sign)):
        return
    if not is_listed and _IN_GROUPS.match(plain, start - len(sign)):
        return
    if one := _ONE.fullmatch(run):
        power = None if one["unit"] else _POWER.match(plain, end)
        if _OTHER_BASE.match(run) or (not one["unit"] and not power and _is_spoiled(plain, end, is_listed)):
            return
        if not sign and _LIKE_HASH.fullmatch(one["number"]) and float(one["number"]) > LARGEST:
            return
        spelling, end = _float(one["number"]), start + one.end("number")
        if power:
            exponent = (power["plain"] or power["raised"] or "").translate(_RAISED)
            if not exponent or "e" in spelling.lower():
                return
            spelling, end = f"{spelling}e{exponent}", power.end()
        yield Number(float(f"-{spelling}" if sign in _MINUS and sign else spelling), start - len(sign), end)
    elif (
        (pair := _RANGE.fullmatch(run))
        and _is_range(pair["low"], pair["high"])
        and (pair["unit"] or not (_POWER.match(plain, end) or _is_spoiled(plain, end, is_listed)))
    ):
        for name in ("low", "high"):
            yield Number(float(pair[name]), start + pair.start(name), start + pair.end(name))


def _is_spoiled(plain: str, end: int, is_listed: bool) -> bool:
    """Whether what stands behind digits makes them text."""
    return bool(_SPOILS.match(plain, end) or (not is_listed and _BEFORE_GROUPS.match(plain, end)))


def _sign(plain: str, start: int) -> str:
    """The sign in front of a number; empty if there is none, or if it is an operator (3-5, x - 5) or a hyphen."""
    sign = plain[start - 1 : start] if start else ""
    if not sign or sign not in _MINUS + _PLUS or (start > 1 and _NO_SIGN_AFTER.match(plain[start - 2])):
        return ""
    return sign


def _float(spelling: str) -> str:
    """The spelling that `float` reads."""
    if _GERMAN.fullmatch(spelling):
        spelling = spelling.replace(".", "").replace(",", ".")
    return spelling.translate(_GROUPS)


def _is_range(low: str, high: str) -> bool:
    """3-5 and 1990-1995, but not 555-1234, a phone number."""
    wholes = [len(side.partition(".")[0]) for side in (low, high)]
    return float(low) < float(high) and (max(wholes) <= 3 or wholes == [4, 4])


class _Digits(dict[int, str | int]):
    """For `str.translate`: digits of every script and width become ASCII, other characters stay. Filled on demand."""

    def __missing__(self, code: int) -> str | int:
        digit = unicodedata.decimal(chr(code), None)
        self[code] = code if digit is None else str(digit)
        return self[code]


# Full-width letters glue like ASCII ones. A full-width comma does so only within a number: 5，6 are two.
_WIDE_COMMA = re.compile("(?<=[０-９])，(?=[０-９])")
_ALIKE = str.maketrans("．－＋：／＃٫٬،⁄∕", ".-+:/#.,://")  # an Arabic comma makes a list
_DIGITS = _Digits(_ALIKE | {code: code - 0xFEE0 for code in range(0xFF21, 0xFF5B)})
