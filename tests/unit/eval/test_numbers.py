"""Numbers and JSON answers in what models write: read whole, or not at all."""

from __future__ import annotations

import contextlib
import re
import time
import unicodedata
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.json_answer import json_answers
from eval.metrics.numeric import last_number, number, same_number

READ: dict[str, Fraction | int | str] = {
    "120": 120,
    "120.0": 120,
    "$1,234.50": "1234.5",
    "50%": 50,
    "50 percent": 50,
    "1,234.": 1234,
    "00012": 12,
    "3/4 of it": "3/4",
    "That is 3/4.": "3/4",
    "1 1/2": "3/2",
    "1 and 1/2": "3/2",
    "1.5/2": "3/4",
    "-1/2": "-1/2",
    "½": "1/2",
    "2½ cups": "5/2",
    "2 ⅓": "7/3",
    r"{7 \over 2}": "7/2",
    "5加仑": 5,
    "1⁄2": "1/2",
    ".5": "1/2",
    "so...5": 5,
    "5...": 5,
    "3.5.": "3.5",
    "18。": 18,
    "-$5": -5,
    "$-5": -5,
    "-US$5": -5,
    "US$5": 5,
    "R$5": 5,
    "USD500": 500,
    "USD 500": 500,
    "€5": 5,
    "5€": 5,
    "− 7": -7,
    "−5": -5,
    "–5": -5,
    "－５": -5,
    "答案是-5": -5,
    "= - 5": -5,
    "Total - 5": 5,
    "+5": 5,
    "-5°C": -5,
    "16 - 3 - 4 = 9 eggs": 9,
    "a = 0": 0,
    "3 = x": 3,
    "5=": 5,
    "18 dollars (2 each for 9)": 18,
    "9th": 9,
    "1e3": 1000,
    "1.5e+3": 1500,
    "1E-5": "1/100000",
    "1.5 × 10^3": 1500,
    "1.5 × 10³": 1500,
    "1.5*10**3": 1500,
    "10²": 100,
    "10⁻³": "1/1000",
    "2 million": 2_000_000,
    "$1.5 million": 1_500_000,
    "2 hundred thousand": 200_000,
    "5k": 5000,
    "$5M": 5_000_000,
    "$2.5bn": 2_500_000_000,
    "2 тысячи": 2000,
    "3 млн": 3_000_000,
    "3万": 30_000,
    "3 万": 30_000,
    "1.5万元": 15_000,
    "3万5千": 35_000,
    "1万2000円": 12_000,
    "2万亿": 2 * 10**12,
    "1,200万": 12_000_000,
    "5千克": 5,
    "3만 원": 30_000,
    "5천만": 50_000_000,
    "2 ล้าน": 2_000_000,
    "2 लाख": 200_000,
    "5 triệu": 5_000_000,
    "5 nghìn đồng": 5000,
    "2 tỷ": 2 * 10**9,
    "5 Millionen": 5_000_000,
    "3 Mio. Euro": 3_000_000,
    "5 millones": 5_000_000,
    "5 milhões": 5_000_000,
    "2.5 milliards": 2_500_000_000,
    "5 juta": 5_000_000,
    "3 milyon lira": 3_000_000,
    "5 military trucks": 5,
    "5 milligrams": 5,
    "5 miles": 5,
    "１２": 12,
    "１，２３４．５０": "1234.5",
    "＄５０": 50,
    "٣": 3,
    "١٬٢٣٤٫٥": "1234.5",
    "१२": 12,
    "𝟏𝟐": 12,
    "1\u200b2": 12,
    "1'234": 1234,
    "1_000": 1000,
    "12,34,567": 1_234_567,
    "共18元。": 18,
    "约5个": 5,
    "#5": 5,
    "5-year-old": 5,
    "**5**": 5,
    "**Total:** 5": 5,
    "$18$": 18,
    r"\(5\)": 5,
    r"\boxed{18}": 18,
    "\boxed{18}": 18,
    r"\$1{,}234": 1234,
    r"\frac{1}{2}": "1/2",
    r"-\dfrac{1}{2}": "-1/2",
    r"1\frac{3}{4}": "7/4",
    r"\frac12": "1/2",
    "\frac{1}{2}": "1/2",
    r"90^\circ": 90,
    r"1.5\times10^{3}": 1500,
    r"50\%": 50,
    "1e99": 10**99,
    "5️⃣": 5,
    "4️⃣2️⃣": 42,
    "25cm^2": 25,
    "5 m²": 5,
    "5 m/s": 5,
    "负5": -5,
    "答案是负５。": -5,
    "零下5度": -5,
    "氷点下5度": -5,
    "영하 5도": -5,
    "答えはマイナス5です": -5,
    "마이너스 5": -5,
    "negative 5": -5,
    "The answer is negative $5.": -5,
    "minus 5 degrees": -5,
    "x = minus 5": -5,
    "It is minus 5": -5,
    "минус 5": -5,
    "负债5万元": 50_000,
    "a nonnegative 5": 5,
}
NOT_READ = (
    *(
        "",
        "eighteen",
        "二十",
        "Ⅻ",
        "①",
        "1e999",
        "1e-100",
        "10^1000",
        "9" * 5000,
        "3/0",
        "10-8",
        "10 – 8",
        "5~6",
        "5～6",
    ),
    *(
        "0.1 + 0.2",
        "2**3",
        "2^3",
        "5²",
        "(2+3)*4",
        "(2+3) - 4",
        "x - 5",
        "x + 5",
        "x-5",
        "2x + 3",
        "5x^2",
        "0x10",
        "3 x 4",
    ),
    *("2:1", "3:30", "12:30pm", "2024-01-05", "5/6/2024", "1/2/3", "3,5", "1,2", "1,2345", "1.2.3", "1.234,50", "3..5"),
    *(
        "1 234",
        "12 345",
        "€1 234,56",
        "5, 6",
        "5 and 6",
        "5 or 6",
        "5、6",
        "2 and a half",
        "3个半",
        "2 3/2",
        "1,234,56",
    ),
    *(
        "3万5",
        "3万五千",
        "三万5",
        "3조",
        "3分之1",
        "8 dozen",
        "5 to 7",
        "3 out of 4",
        "5至7",
        "5 plus 3",
        "5 divided by 2",
        "5加3",
        "5乘以3",
        "5M people",
        "2 million 500",
        "5 mil",
        "2 Billionen",
        "2 bilhões",
        "4 2",
        "2 hundred and five",
        "one million 500",
    ),
    *("x minus 5", "five minus 5", "欺负5", "胜负5", "10 minus 5", "10减5", "negative -5"),
    *("--3", "±5", "- 5 apples", "√2", "2π", "H2O", "COVID-19", "A5", "x2", r"\frac{x}{2}", r"\sqrt{2}", "No.5"),
)


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_numbers_are_read(text: str, value: Any) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize("text", NOT_READ)
def test_what_is_not_one_whole_number_is_not_read(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("First 5, then 3/4.", Fraction(3, 4)),
        ("5 + 4 = 9.", 9),
        ("He pays 3万5千元", 35_000),
        ("It costs 2 million 500 thousand", None),
        ("H2O is no number, 7 is", 7),
        ("7 is one, H2O is not", 7),
        ("x^2 is 7 m^2", 7),
        ("at 3:30", None),
        ("nothing", None),
        ("3胜2负5", None),
        ("It fell to minus 5", -5),
    ],
)
def test_the_last_number_is_read_whole_or_not_at_all(text: str, value: Any) -> None:
    assert last_number(text) == value


FORMS = ["{}", "{:,}", "{}.0", "{}.000", "$ {:,}.", "It is {}", "{}%", "**{}**", "答案是{}。", "({})", "\\boxed{{{}}}"]
VALUES = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.decimals(-10_000, 10_000, places=2).map(str),
    st.integers(1000, 10**9).map("{:,}".format),
    st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)


@given(st.integers(-(10**12), 10**12), st.sampled_from(FORMS))
def test_a_whole_number_reads_back_in_every_form(value: int, form: str) -> None:
    assert number(form.format(value)) == value
    assert last_number("7 and " + form.format(value)) == value


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@given(text=st.text("0123456789.,-+*/^=$% eExkm万千万:'()\n\\{}frac个½²", max_size=30))
def test_width_and_unicode_form_change_nothing(text: str) -> None:
    ascii_text = "".join(c for c in text if c.isascii() and c not in "\\'")
    assert number(wide(ascii_text)) == number(ascii_text)
    for form in ("NFC", "NFD"):
        assert number(unicodedata.normalize(form, text)) == number(text)


PROSE = st.sampled_from(
    ["", "He has ", "so ", "答案是", "所以一共是", "Итого ", "총 ", "the total: ", "(", "≈ ", "คำตอบคือ "]
)
AFTER = st.sampled_from(["", ".", " eggs", "个。", "元", ", I think", "\nDone", ")", " шт.", "원", " บาท", "!", "；"])


@given(PROSE, VALUES, AFTER)
def test_a_number_in_prose_is_its_value_or_none(before: str, said: str, after: str) -> None:
    """Never a part of it."""
    value = Fraction(said.replace(",", ""))
    assert number(before + said + after) in (value, None)
    assert last_number(before + said + after) in (value, None)
    assert number(f"{before.strip()} {said}{after}") == value or before.strip() == "(" or value < 0


@given(st.from_regex("[0-9]{1,6}([.,/:^*x+-][0-9]{1,6}){0,3}", fullmatch=True), PROSE, AFTER)
def test_joined_digits_are_one_number_or_none(text: str, before: str, after: str) -> None:
    """Python's own reading says what they are; a part of them is never read."""
    allowed = {None}
    if not re.search("[0-9],[0-9]", text) or re.fullmatch(
        "[0-9]{1,3}(,[0-9]{3})+([.][0-9]+)?|[0-9]{1,2}(,[0-9]{2})+,[0-9]{3}", text
    ):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            allowed.add(Fraction(text.replace(",", "")))
    if found := re.fullmatch("([0-9.]+)/([0-9]+)", text):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            allowed.add(Fraction(found[1]) / int(found[2]))
    if found := re.fullmatch(r"(?:([0-9.]+)[*x])?10\^(-?[0-9]+)", text):
        with contextlib.suppress(ValueError):
            allowed.add(Fraction(found[1] or 1) * Fraction(10) ** min(int(found[2]), 100))
    assert number(before + text + after) in allowed
    assert last_number(before + text + after) in allowed


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1.", "1 ", "-", "- 1", "1/", "1 1/2 ", "万", "1万", "\\frac{", "$", "1e", "x1", "=1"]
)
def test_long_texts_are_read_in_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    number(text)
    last_number(text)
    assert time.process_time() - start < 2


def test_numbers_are_the_same_within_the_tolerance() -> None:
    assert same_number(number("120.0"), number("120"))
    assert same_number(number("0.33333"), number("1/3"))
    assert same_number(Fraction("1.00001"), Fraction(1))
    assert not same_number(Fraction("1.000011"), Fraction(1))
    assert not same_number(None, None)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('```json\n{"answer": "18", "steps": ["{", "x"]}\n```', ["18"]),
        ('Here you are:\n```\n{"answer": 120.0}\n```\nBye', ["120.0"]),
        ('I think {x} so {"steps": [{"n": 1}], "answer": 18} ok', ["18"]),
        ('{"answer": "18", "explanation": "cut of', ["18"]),
        ('{"answer": 18, "expl', ["18"]),
        ('{"answer": 18', []),  # more digits may have followed
        ('{"answer": "18', []),
        ('{"answer": "line\nbreak"}', ["line\nbreak"]),
        ('{"answer": "say \\"5\\"", }', ['say "5"']),
        ('{"answer": 123456789012345678901234567890.10}', ["123456789012345678901234567890.10"]),
        ('{"answer": 1,234}', ["1,234"]),
        ('{"answer": $1,234.50, "steps": []}', ["$1,234.50"]),
        ('{"answer": \\frac{1}{2}}', ["\\frac{1}{2}"]),
        ('{"answer": \\$1{,}234}', ["\\$1{,}234"]),
        ('{"answer": 1 1/2, "e": "x"}', ["1 1/2"]),
        ('{"answer": 18 // total\n}', ["18 // total"]),
        ("{'answer': '18', 'explanation': 'it's 5'}", ["18"]),
        ("{“answer”：“１８”}", ["１８"]),
        ("{answer: 18}", ["18"]),
        ('{" ANSWER ": 18}', ["18"]),
        ('{"explanation": "he said "5" eggs", "answer": 9}', ["9"]),
        ('{"steps": [{"answer": 5}], "answer": 7}', ["7"]),
        ('{"steps": [{"answer": 5}, {"answ', []),
        ('{"answer": {"answer": 5}}', []),
        ('{"answer": "<the number alone>", "steps": ["<step>"]}\n{"answer": "18"}', ["18"]),
        ('```json\n{"answer": "<the number alone>"}\n```\n```json\n{"answer": 18}\n```', ["18"]),
        ('{"answer": 5}{"answer": 6}', ["5", "6"]),
        ('{"answer": 5, "answer": 6}', ["5", "6"]),
        ('[{"answer": 5}]', ["5"]),
        ('{"answer": [1, 2]}', []),
        ('{"result": 5}', []),
        ("The answer is 5", []),
        ("", []),
    ],
)
def test_json_answers_are_read(text: str, answers: list[str]) -> None:
    assert list(json_answers(text)) == answers


@pytest.mark.parametrize(
    "text",
    [
        *("{" * 100_000, '{"a":' * 20_000, '"answer": "' + "\\" * 100_000, "```" * 30_000, '{"answer": "' * 9_000),
        *("{'" * 50_000, '{"answer": ' * 9_000, '{"answer": 1' + ",2" * 50_000, '{"answer":1' + " " * 100_000),
        *('{"answer":1' + "\\a{1}" * 20_000, "{" + " " * 100_000, "{" + "a" * 100_000, '{"answer": "1"}' * 7_000),
        *("{" + '"a" ' * 25_000, "{" + "' " * 50_000, '{"answer": ' + "1, a " * 20_000, "{" + "[" * 100_000),
    ],
)
def test_json_answers_are_read_in_time(text: str) -> None:
    start = time.process_time()
    json_answers(text)
    assert time.process_time() - start < 2


@given(st.text(alphabet="{}[]\"',:answer0123456789.` \n\\", max_size=80))
def test_any_text_gives_texts(text: str) -> None:
    assert all(isinstance(answer, str) for answer in json_answers(text))
