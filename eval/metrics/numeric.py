"""Reads numbers from answers of people and models, completely or not at all.

Supported are signs (also in words: 负5, minus 5), thousands separators (1,234; 1'234; 1_234; 12,34,567), currency and
percent signs, decimals, fractions (3/4, 1 1/2), powers of ten (1.5e3, 1.5 × 10^3), scale words (2 million, 3万, 5k),
digits of every script and width, and LaTeX. The value is None for ranges, dates, times, ratios, sums (10-8, 3:30, 2+3),
lists (3,5), numbers in words (twenty, 二十) and anything longer than `LONGEST`. Numbers in names (H2O, COVID-19) are
ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from eval.metrics.normalize_numbers import NO_NUMBER, plain_digits

TOLERANCE = Fraction(1, 100_000)
LONGEST = 100  # characters of one number; longer ones are noise and take time
BIGGEST_EXPONENT = 99

CURRENCY = "$€£¥₹₩₽฿₫₪₺₴₱₦"
_CODE = rf"(?:US|CA|AU|HK|NT|SG|NZ|A|C|R|S)(?=[{CURRENCY}])|USD|CAD|AUD|EUR|GBP|RMB|CNY|JPY|INR|HKD|SGD|CHF|KRW|Rs|RM"
_UNSPACED = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_UNSPACED |= {"백": 100, "천": 1000, "만": 10**4, "억": 10**8, "พัน": 1000, "หมื่น": 10**4, "แสน": 10**5, "ล้าน": 10**6}
_SCALE = rf" ?(?:{'|'.join(_UNSPACED)})+(?<!千(?=[克米瓦卡赫帕伏焦升]))"  # 千克 is a unit
_RUN = rf"(?:(?<!\.)\.?[0-9]+|[0-9]+|{NO_NUMBER})(?:[.,'_:]+[0-9]+|[eE][-+][0-9]+|[A-Za-z]{{1,12}}[0-9]+)*"
_JOIN = r" {0,2}(?:\*\*|[-+\u2212\u2014~*×÷/^xX]|或|[加减乘除]以?) {0,2}| (?:or|plus|minus|times|divided by) "
_MORE = r" {1,2}(?:and )?[0-9]+ ?/ ?[0-9]+|(?<![0-9]{4}) [0-9]{3}(?![0-9])(?:[.,'_:]+[0-9]+)*"
_SPAN = re.compile(rf"{_RUN}(?:(?:{_JOIN})[-+\u2212]?[{CURRENCY}]? ?{_RUN}|{_MORE}|{_SCALE} ?{_RUN})*")

_WHOLE = r"(?:[0-9]{1,3}(?P<by>[,'_])[0-9]{3}(?:(?P=by)[0-9]{3})*|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]+)"
_DECIMAL = re.compile(rf"(?P<digits>(?:{_WHOLE})?(?:\.[0-9]+)?)(?:[eE](?P<power>[-+]?[0-9]+))?")
_TIMES_TEN = re.compile(r"(?:(?P<number>[^ ×xX*]+) ?[×xX*] ?)?10 ?(?:\^|\*\*) ?(?P<power>[-+\u2212]?[0-9]+)")
_MIXED = re.compile(r"(?P<whole>[0-9]+) +(?:and )?(?P<over>[0-9]+) ?/ ?(?P<under>[0-9]+)")
_OVER = re.compile(r"(?P<over>[^ /]+) ?/ ?(?P<under>[0-9]+)")

_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "mn": 10**6,
    "bn": 10**9,
    "lakh": 10**5,
    "crore": 10**7,
    **dict.fromkeys(("ribu", "nghìn", "ngàn", "tausend", "duizend", "mille"), 10**3),
    **dict.fromkeys(("millón", "millones", "milhão", "milhões", "milione", "milioni", "millionen", "mio"), 10**6),
    **dict.fromkeys(("miljoen", "milyon", "juta", "triệu"), 10**6),
    **dict.fromkeys(("milliard", "milliarde", "milliarden", "mrd", "miliardo", "miliardi", "miljard"), 10**9),
    **dict.fromkeys(("milyar", "miliar", "tỷ", "tỉ"), 10**9),
    "тысяча": 10**3,
    "тысячи": 10**3,
    "тысяч": 10**3,
    "тыс": 10**3,
    "миллион": 10**6,
    "миллиона": 10**6,
    "миллионов": 10**6,
    "млн": 10**6,
    "миллиард": 10**9,
    "миллиарда": 10**9,
    "миллиардов": 10**9,
    "млрд": 10**9,
    "हज़ार": 10**3,
    "हजार": 10**3,
    "लाख": 10**5,
    "करोड़": 10**7,
    "ألف": 10**3,
    "آلاف": 10**3,
    "مليون": 10**6,
    "مليار": 10**9,
}
_WORDS = "|".join(sorted(_SCALES, key=len, reverse=True))
_SCALE_WORD = re.compile(rf"[ -]?({_WORDS})s?(?!\w)", re.IGNORECASE)
_SHORT_SCALE = re.compile(r"([kK])(?![A-Za-z])|(?:([mM])|([bB]))(?![A-Za-z])")
_SCALE_AT = re.compile(_SCALE)
_PART = re.compile(rf"([0-9.,]+)({_SCALE})? ?")

_BEFORE = re.compile(
    rf"(?P<sign>[-+\u2212])?(?P<gap> ?)(?:(?P<currency>(?P<code>(?<![A-Za-z])(?:{_CODE}))(?: ?[{CURRENCY}]{{1,2}})?"
    rf"|[{CURRENCY}]{{1,2}}) ?(?P<inner>[-+\u2212]?))?$"
)
_UNREADABLE_BEFORE = re.compile(
    rf"(?:√\{{?|[±^]|[)\]] ?[*×÷/+]|(?<![A-Za-z])[A-Za-z] ?[×÷/+]|分之|分の|분의|[〇零一二三四五六七八九十百千万亿]|"
    rf"\b(?:{_WORDS})(?: and)?) ?$",
    re.IGNORECASE,
)
_UNREADABLE_AFTER = re.compile(
    r" ?(?:[\u2030π√兆조]|dozen|\^|分之|分の|분의|个半|個半|半|(?i:mil|bilh(?:ão|ões)|bill(?:ón|ones|ionen))(?!\w))"
    r"| ?(?!m\^)[a-z] ?[-+*×÷/^] ?[0-9]"
    r"| (?:and|&) (?:an?|one|two|three) (?:half|third|quarter)"
)
_MORE_WORDS = re.compile(
    r" (?:and )?(?:[0-9]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+(?:teen|ty)\b)"
)
_AND = re.compile(r"\s*(?:[,;、&]|and|to|out of|和|及|至|到)\s*|\s+")
_CHINESE_DIGITS = "〇零一二三四五六七八九两十百千"


def number(text: str) -> Fraction | None:
    """The number that a short answer states: the first one after its last "=", else the first.

    "$1,234.50" is 1234.5, "50%" is 50, "3/4" is 0.75, "120.0 apples" is 120. None without a number, if it cannot be
    read completely, or if it starts a list ("5, 6").
    """
    text = plain_digits(text)
    found, equals = _numerals(text), text.rfind("=")
    found = [numeral for numeral in found if numeral.start() > equals] or found
    if not found or (found[1:] and _AND.fullmatch(text, found[0].end(), found[1].start())):
        return None
    return _value(text, found[0])


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None without a number, or if it cannot be read completely."""
    text = plain_digits(text)
    found = _numerals(text)
    return _value(text, found[-1]) if found else None


def same_number(one: Fraction | None, other: Fraction | None) -> bool:
    """Whether both are numbers that differ by at most 1e-5."""
    return one is not None and other is not None and abs(one - other) <= TOLERANCE


def _numerals(text: str) -> Sequence[re.Match[str]]:
    """All matches that look like numbers outside names, readable or not."""
    return [found for found in _SPAN.finditer(text) if not _in_name(text, found.start())]


def _in_name(text: str, start: int) -> bool:
    """Whether a letter of a script with capitals precedes it: H2O, m^2, but not 共5个 or USD5."""
    before = text[max(start - 8, 0) : start].removesuffix("^")
    if not _is_cased(before[-1:]):
        return before[-1:] == "_"
    found = _BEFORE.search(before)
    return not (found and found["code"])


def _is_cased(character: str) -> bool:
    return character.lower() != character.upper()


def _value(text: str, found: re.Match[str]) -> Fraction | None:
    sign, has_currency = _sign(text, found.start())
    if not sign or len(found[0]) > LONGEST or _UNREADABLE_AFTER.match(text, found.end()):
        return None
    scale = _SCALE_AT.match(text, found.end())
    if scale or _SCALE_AT.search(found[0]):
        end = scale.end() if scale else found.end()
        size = _unspaced(text[found.start() : end], text[end : end + 1])
    else:
        size = _scaled(_size(found[0]), text, found.end(), has_currency)
    return None if size is None else sign * size


def _size(span: str) -> Fraction | None:
    """The value of a span; None if the span contains more than one number."""
    if found := _MIXED.fullmatch(span):
        part = _over(Fraction(found["over"]), found["under"])
        return None if part is None or part >= 1 else int(found["whole"]) + part
    if found := _TIMES_TEN.fullmatch(span):
        factor = _decimal(found["number"]) if found["number"] else Fraction(1)
        return _shifted(factor, found["power"].replace("\u2212", "-"))
    if found := _OVER.fullmatch(span):
        return _over(_decimal(found["over"]), found["under"])
    return _decimal(span)


def _decimal(text: str) -> Fraction | None:
    found = _DECIMAL.fullmatch(text)
    if not found or not found["digits"]:
        return None
    value = Fraction(re.sub("[,'_]", "", found["digits"]))
    return _shifted(value, found["power"]) if found["power"] else value


def _shifted(value: Fraction | None, power: str) -> Fraction | None:
    exponent = int(power)
    return None if value is None or abs(exponent) > BIGGEST_EXPONENT else value * Fraction(10) ** exponent


def _over(value: Fraction | None, under: str) -> Fraction | None:
    return value / int(under) if value is not None and int(under) else None


def _sign(text: str, start: int) -> tuple[int, bool]:
    """The sign 1 or -1, or 0 if the text before makes the number unreadable; and whether a currency precedes it."""
    window = text[max(start - 24, 0) : start]
    found = _BEFORE.search(window)
    assert found is not None  # all its parts may be empty
    has_currency = found["currency"] is not None
    signs, before = (found["sign"] or "") + (found["inner"] or ""), window[: found.start()]
    if _UNREADABLE_BEFORE.search(window) or len(signs) > 1 or (text[start] == "." and re.search(r"\w$", window)):
        return 0, has_currency
    factor = -1 if signs and signs != "+" else 1
    if not signs:
        return 1, has_currency
    if found["inner"]:
        return factor, has_currency
    if not found["gap"]:
        return 0 if re.search(r"[-+)\]\u2212/0-9]$|[\w)]\*{1,2}$", before) or _is_cased(
            before[-1:]
        ) else factor, has_currency
    word = before.rstrip(" ")
    if re.search("[=(:：]$", word) or (signs == "\u2212" and not re.search(r"[\w)]$", word)):
        return factor, has_currency
    is_dash = signs == "-" and re.search(r"\w{2}$", word)  # "Total - 5" has a dash, "x - 5" is a sum
    return int(bool(is_dash)), has_currency  # and "- 5" begins a list, or is -5


def _scaled(value: Fraction | None, text: str, end: int, has_currency: bool) -> Fraction | None:
    """Multiply by the scale words or letter at `end`."""
    if value is None:
        return None
    if short := _SHORT_SCALE.match(text, end):
        if short[1] or has_currency:
            return value * (10**3 if short[1] else 10**6 if short[2] else 10**9)
        return None if short[0].isupper() else value  # 5M may be millions or metres
    start = end
    while word := _SCALE_WORD.match(text, end):
        value, end = value * _SCALES[word[1].lower()], word.end()
    return None if end > start and _MORE_WORDS.match(text, end) else value


def _unspaced(span: str, after: str) -> Fraction | None:
    """The value of 3万, 3万5千 or 1万2000, with decreasing parts; None for 3万5, which may be 35,000 or 30,005."""
    parts = list(_PART.finditer(span))
    total, last = Fraction(0), 0
    for part in parts:
        size = _decimal(part[1])
        factor = _factor(part[2] or "")
        if size is None or (last and (size * factor >= last or (factor == 1 and size * 10 < last))):
            return None
        total, last = total + size * factor, factor
    is_whole = sum(len(part[0]) for part in parts) == len(span)
    return total if is_whole and not (after and after in _CHINESE_DIGITS) else None


def _factor(scale: str) -> int:
    """万亿 is ten thousand times a hundred million."""
    return math.prod(_UNSPACED[word] for word in re.findall("|".join(_UNSPACED), scale))
