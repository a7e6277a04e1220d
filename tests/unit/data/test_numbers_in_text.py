"""Numbers in text: each rule of docs/numbers.md, the exact round trip, and what is refused."""

from __future__ import annotations

import contextlib
import random
import re
import time
import timeit

import pytest

from zerotune.data.fields import RowError
from zerotune.data.numbers_in_text import NUM, find_numbers, numbered

NUMBERS: dict[str, dict[str, float]] = {  # rule -> text with its number in brackets -> value
    "integers": {"[5] apples": 5, "costs [0]": 0, "[12345678901234567890]!": 12345678901234567890.0},
    "decimals": {"[3.25] km": 3.25, "at [.5]": 0.5, "it is [5].": 5, "[0.001],": 0.001, "[1.50]": 1.5},
    "signs": {
        "[-5] degrees": -5,
        "[\u22125] degrees": -5,
        "[+5]": 5,
        "x=[-5]": -5,
        "([-5])": -5,
        "气温[-5]度": -5,
        "$[-5]": -5,
        "+$[5]": 5,
        "x - [5]": 5,
        "[-.5]": -0.5,
        "[－５]度": -5,
    },
    "thousands": {
        "[1,234.5]": 1234.5,
        "[12,345,678]": 12345678,
        "[1,00,000] rupees": 100000,
        "[1'234.50] CHF": 1234.5,
        "[1\u202f234\u202f567] €": 1234567,
        "[1.234,56] €": 1234.56,
        "[1.234.567,8] €": 1234567.8,
        "([1,234] people)": 1234,
        "($[1,234])": 1234,
    },
    "scientific": {
        "[1e5]": 1e5,
        "[6.02E+23]": 6.02e23,
        "[1.6e-19] C": 1.6e-19,
        "[1.5 × 10^3] m": 1500,
        "[3×10⁸] m/s": 3e8,
        r"[3.0\times 10^{8}] m/s": 3e8,
        r"$[6.02 \cdot 10^{-23}]$": 6.02e-23,
        r"[3\,\times\,10^8]": 3e8,
        "[1.5 × 10^\u22125]": 1.5e-5,
        "[1.234,5 × 10^3] €": 1234500,
        "[1e300]": 1e300,
    },
    "units": {
        "[5]kg": 5,
        "[5] km/h": 5,
        "[5]km/h": 5,
        "[50]%": 50,
        "[20]°C": 20,
        "$[5]": 5,
        "EUR[1.5] mn": 1.5,
        "¥[5.5]": 5.5,
        "[5]-year-old": 5,
        "[3]万元": 3,
        "[1]st": 1,
        "~[5]": 5,
        "[2.5]x": 2.5,
        "[7]B": 7,
        r"[5]\%": 5,
        "[5]m²": 5,
    },
    "tokenised text": {
        "[1 @,@ 234] km": 1234,
        "[1 @,@ 234 @,@ 567 @.@ 5] km": 1234567.5,
        "[3 @.@ 5]": 3.5,
        "a [3] @-@ yard pass": 3,
        "= [-1 @.@ 5]": -1.5,
        "[１２ @.@ ５]": 12.5,
    },
    "digits of other scripts": {
        "[１２３]元": 123,
        "[１．５]米": 1.5,
        "[١٢٣]": 123,
        "[१२] रुपये": 12,
        "共[5]个": 5,
        "[１，２３４．５]元": 1234.5,
        "[５]ｋｇ": 5,
        "[١٬٢٣٤٫٥]": 1234.5,
    },
}
SEVERAL: dict[str, list[float]] = {
    "from 3-5 km": [3, 5],
    "1990-1995": [1990, 1995],
    "1.5-2.5kg": [1.5, 2.5],
    "3–5": [3, 5],
    "100–1000": [100, 1000],
    "3−5": [3, 5],
    "3+5=8": [3, 5, 8],
    "3*5": [3, 5],
    "3 -5": [3, -5],
    "[-5, -3]": [-5, -3],
    "5, 6 and 7": [5, 6, 7],
    "5，6": [5, 6],
    "2024 100 people": [2024, 100],
    "5 kg 100 m": [5, 100],
    "5 -100": [5, -100],
    "5, 100": [5, 100],
    "$3-$5": [3, 5],
    "3시간 30분": [3, 30],
    "5 h 30 min": [5, 30],
    "between 5 and 2000": [5, 2000],
    r"5\times 10": [5, 10],
    "2x, 3y": [2, 3],
    "<5 >6": [5, 6],
    "1 @,@ 234 of 5 @,@ 678 @.@ 9 m": [1234, 5678.9],
    "3 @-@ 5 km": [3, 5],
    "100 200 300": [100, 200, 300],
    "(300 200 100)": [300, 200, 100],
    "50 100 150 200 250, 7": [50, 100, 150, 200, 250, 7],
    "10 20 30 100 200 300": [10, 20, 30, 100, 200, 300],
    "0 100 200 400": [0, 100, 200, 400],
    "128 256 512 1024": [128, 256, 512, 1024],
    "1000 500 200 100": [1000, 500, 200, 100],
}
TEXTS = {
    "dates": [
        "2024-01-05", "5/1/2024", "5.1.2024", "January 5, 2024", "Jan 5", "5 January 2024", "5th of May", "May 2024",
        "2024年1月5日", "１月５日", "2024년 1월 5일", "12月", "２０２４／０１／０５", "12 мая",
        "12 мая 2024", "12 mai 2024", "1er janvier 2024", "5. Januar 2024", "12 de mayo de 2024",
    ],
    "times": [
        "12:30", "12:30:45", "5pm", "5 p.m.", "5:30 PM", "3点30分", "１２：３０", "12：30", "3시 30분", "오후 3시",
        "14 h 05", "19 ч 30", "19.30 Uhr", "19 Uhr 30",
    ],
    "versions and addresses": ["1.2.3", "v1.2", "192.168.0.1", "https://x.org/5?id=7", "10.0.0.1:8080", "::1:2"],
    "phone numbers": ["555-1234", "+49 30 123456", "(555) 123-4567", "555-123-4567", "138 1234 5678", "13812345678"],
    "names": [
        "x2", "H2O", "COVID-19", "T-1000", "No.5", "#5", "№5", "第5章", "0xFF", "0b101", "007", "file_2", "A4",
        "GPT-4.1", "3f2a", "m2",
        "U+2212", "1a2b", "978-3-16-148410-0", "&#39;", "a%20b", "\\u2019", "page/5", "Кб5", "xEUR5",
        "commit 5e90432", "commit 5e904", "1e301", "12E999", "1e999999999", "5E+1234", "1e-1234",
        "Ｈ２Ｏ", "Ａ４", "＃５",
        "arXiv:2411.02083", "arXiv 2411.02083",
    ],
    "ratios, fractions and powers": [
        "1/2", "3:1", "10^3", "10²", "5½", "2^-3", "1️⃣", "１／２", "1⁄2", "5 1/2", "1 ½", "5½ kg", "5又1/2",
        "10⁻³", "2ⁿ", "101₂", "(x)^-2", "2 × 10^1234", "3 × 10^{n}", "3 × 10^2.5", "1e5 × 10^3", "3-5 × 10^3",
    ],
    "ambiguous": [
        "1,5", "1,2,3", "12,34", "1234,567", "1.234.567", "01.5", "５，６", "١،٢٣٤",
        "rgb(128,128,128)", "(100,200)", "f(1,234)", "[1,200]", "(3,400)", "(-1,200)", "(1,200, x)", "（1,234）",
    ],
    "spaces between groups of three": [
        "1 234 567 euros", "1 000 000", "1 234", "1 234,50", "-1 234.5", "1 000-2 500", "EUR1 234",
        "6.022 140 76×10^23", "555 123 4567", "299 792 458 m/s", "123 456 789", "1 234 567 890", "100 000 000",
        "149 597 870 700", "-100 200 300", "100 200 300.5", "100 100 100",
    ],
    "LaTeX": [
        "x_{12}", "e^{-2x}", r"\frac{1}{2}", r"\sqrt[n]{2}", r"5\frac{1}{2}", "5{,}000", "1{,}234{,}567",
        r"5\,000", r"5\,123", r"5\ 123", "10^{-5}", r"\boxed{42}",
    ],
    "a sign before a currency": ["-$5", "\u2212€5", "-$ 5", "-US$5", "-EUR5", "-$1,234.50", "－＄５"],
    "Chinese numerals": ["三百", "十五万", "第三", "二〇二四"],
    "tokenised text": ["mid @-@ 1990s", "1 @,@ 5", "1 @.@ 2 @.@ 3", "1995 @-@ 96", "x @-@ 5"],
    "no number": ["", "abc", "-", ".", "e5", "½", "—", "NaN", "inf"],
}  # fmt: skip


def marked(text: str) -> tuple[str, str]:
    """(the text without brackets, what is in brackets)"""
    inside = re.search(r"\[([^]]+)\]", text)
    assert inside
    return text.replace(inside[0], inside[1]), inside[1]


@pytest.mark.parametrize(
    ("case", "value"), [pair for rule in NUMBERS.values() for pair in rule.items()], ids=lambda case: str(case)
)
def test_a_number_and_its_value(case: str, value: float) -> None:
    text, spelling = marked(case)
    found = find_numbers(text)
    assert [(number.value, text[number.start : number.end]) for number in found] == [(value, spelling)]


@pytest.mark.parametrize("text", SEVERAL)
def test_several_numbers(text: str) -> None:
    assert [number.value for number in find_numbers(text)] == SEVERAL[text]


@pytest.mark.parametrize("text", [text for texts in TEXTS.values() for text in texts])
def test_text_stays_text(text: str) -> None:
    for around in ("{}", "see {} now", "见{}。", "({})", "{}, and"):
        assert find_numbers(around.format(text)) == [], around


def test_round_trip_keeps_every_character() -> None:
    draw = random.Random(0)
    texts = [marked(case)[0] for rule in NUMBERS.values() for case in rule]
    texts += [*SEVERAL, *(text for group in TEXTS.values() for text in group)]
    for _ in range(300):
        text = draw.choice([" ", ", ", "。"]).join(draw.sample(texts, 6))
        result, spans = numbered(text)
        assert result.original == text
        assert result.text.count(NUM) == len(result.values) == len(result.spellings)
        assert spans == []


def test_random_characters_never_fail_and_come_back() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choices("0123456789.,-+eExX/:'^ kg5年月%$()−–１．，：٣²①⁵é½{}\\", k=draw.randint(1, 24)))
        with contextlib.suppress(RowError):  # 6E413 is too large
            assert numbered(text)[0].original == text


def test_spans_move_with_the_text_and_cut_numbers() -> None:
    text = "Q: 12 and 3?A: 45,678 kg"
    start = text.index("A:")
    result, spans = numbered(text, [(start, len(text)), (start + 4, start + 8)])
    assert result.text == "Q: <NUM> and <NUM>?A: <NUM>5,67<NUM> kg"
    assert [result.text[a:b] for a, b in spans] == ["A: <NUM>5,67<NUM> kg", "5,67"]
    joined, (span,) = numbered("12", [(1, 2)])
    assert (joined.text, joined.values, joined.text[slice(*span)]) == ("<NUM><NUM>", (1.0, 2.0), "<NUM>")


def test_special_tokens_stay_whole() -> None:
    fixed = re.compile(re.escape("<|reserved_5|>") + "|" + re.escape("<extra_id_0>") + "|" + re.escape("[5]"))
    result, _ = numbered("<|reserved_5|> 7 [5]8", fixed=fixed)
    assert result.text == "<|reserved_5|> <NUM> [5]<NUM>"


@pytest.mark.parametrize("text", ["1e+301", "-1e400 kg", "9" * 400, "1.0e999", "2 × 10^999"])
def test_a_number_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(RowError, match=r"number too large: .*; the largest is 1e\+300"):
        find_numbers(text)


def test_the_token_itself_is_refused() -> None:
    with pytest.raises(RowError, match="stands for a number"):
        numbered("it costs <NUM> dollars")


def seconds(text: str) -> float:
    """Of the processor; `timeit` stops the garbage collector, which walks over what other tests left."""

    def read() -> None:
        with contextlib.suppress(RowError):
            find_numbers(text)

    return timeit.timeit(read, timer=time.process_time, number=1)


def test_long_text_takes_linear_time() -> None:
    for piece in (
        "1,",
        "a-",
        "5-",
        "1.",
        "+1 ",
        "(12) ",
        "x",
        "9",
        "1 234 ",
        "-$1",
        "(1,234",
        "{1}",
        "１，",
        "1 de ",
        "100 200 300 ",
        "1 @,@ ",
        "5 20 300 4000 ",
    ):
        few, many = (seconds(piece * size) for size in (20_000, 80_000))
        assert many < 16 * few + 0.5, piece
