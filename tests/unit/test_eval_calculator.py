"""The calculator against Python's own arithmetic, what it refuses (F18), and numbers and JSON read from answers."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.calculator import DEEPEST, LONGEST, calculate, written
from eval.metrics.json_answer import json_answer
from eval.metrics.numeric import last_number, number, same_number

NUMBERS = st.one_of(
    st.integers(0, 10_000).map(str),
    st.decimals(0, 1000, places=3).map(str),
    st.integers(1000, 10**9).map("{:,}".format),
)
SPACES = st.sampled_from(["", " "])


def expressions() -> st.SearchStrategy[str]:
    return st.recursive(
        NUMBERS,
        lambda inner: st.one_of(
            st.tuples(inner, SPACES, st.sampled_from("+-*/"), SPACES, inner).map("".join),
            inner.map("({})".format),
            inner.map("-{}".format),
        ),
        max_leaves=12,
    )


def by_python(text: str) -> Fraction | None:
    """Python's own parser and precedence, over the same exact numbers."""
    exact = re.sub(r"[0-9][0-9,.]*", lambda found: f"Fraction('{found[0].replace(',', '')}')", text)
    try:
        return Fraction(eval(exact, {"__builtins__": {}, "Fraction": Fraction}))
    except ZeroDivisionError:
        return None


@settings(max_examples=300)
@given(expressions().filter(lambda text: len(text) <= LONGEST))
def test_it_agrees_with_python(text: str) -> None:
    if max(text.count("("), text.count("-")) < DEEPEST:
        assert calculate(text) == by_python(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "__import__('os').system('true')",
        "(" * 10_000 + "1" + ")" * 10_000,
        "(" * 90 + "1" + ")" * 90,
        "-" * 150 + "1",
        "1/0",
        "1/(2-2)",
        "１+２",
        "٣+٤",
        "1e9",
        "0x10",
        "1_000",
        "1,00",
        "1+",
        "(1",
        "1)",
        "2 3",
        "()",
        "",
        "abs(1)",
        "1;2",
        "9" * 10_000,
    ],
)
def test_what_is_no_sum_is_refused_at_once(text: str) -> None:
    calculate("1+1")
    start = time.perf_counter()
    assert calculate(text) is None
    assert time.perf_counter() - start < 0.01


@given(st.text(alphabet="0123456789+-*/().,%$ ×÷−eab_", max_size=LONGEST + 5))
def test_any_text_is_a_number_or_none(text: str) -> None:
    value = calculate(text)
    assert value is None or number(written(value)) is not None


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("12*3", "36"),
        ("2*(3+4)-1", "13"),
        ("-3*-2", "6"),
        ("2--1", "3"),
        ("50%*200", "100"),
        ("$1,000 × .5", "500"),
        ("7÷2", "3.5"),
        ("1/3", "0.333333333333"),
        ("2/3*3", "2"),
        ("0.1+0.2", "0.3"),
        ("99999999999*99999999999", "9999999999800000000001"),
        ("1/1000000000", "0.000000001"),
    ],
)
def test_results_are_written_in_plain_digits(text: str, result: str) -> None:
    value = calculate(text)
    assert value is not None
    assert written(value) == result


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("120", 120),
        ("120.0", 120),
        ("$1,234.50", Fraction("1234.5")),
        ("50%", 50),
        ("3/4 of it", Fraction(3, 4)),
        ("-$5", -5),
        ("− 7", -7),
        ("10-8", 10),
        ("18 dollars (2 each for 9)", 18),
        ("16 - 3 - 4 = 9 eggs", 9),
        ("a = 0", 0),
        ("3 = x", 3),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("3/0", 3),
        ("１２", None),
        ("٣", None),
        ("eighteen", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_are_read(text: str, value: Fraction | int | None) -> None:
    assert number(text) == value


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.0", "{}.000", "$ {:,}.", "It is {}", "{}%"]))
def test_a_whole_number_reads_back_in_every_form(value: int, form: str) -> None:
    assert number(form.format(value)) == value
    assert last_number("7 and " + form.format(value)) == value


def test_numbers_are_the_same_within_the_tolerance() -> None:
    assert same_number(number("120.0"), number("120"))
    assert same_number(number("0.33333"), number("1/3"))
    assert same_number(Fraction("1.00001"), Fraction(1))
    assert not same_number(Fraction("1.000011"), Fraction(1))
    assert not same_number(None, None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('```json\n{"answer": "18", "steps": ["{", "x"]}\n```', "18"),
        ('Here you are:\n```\n{"answer": 120.0}\n```\nBye', "120.0"),
        ('I think {x} so {"steps": [{"n": 1}], "answer": 18} ok', "18"),
        ('{"answer": "18", "explanation": "cut of', "18"),
        ('{"answer": 18, "expl', "18"),
        ('{"answer": "line\nbreak"}', "line\nbreak"),
        ('{"answer": "say \\"5\\"", }', 'say "5"'),
        ('{"answer": 123456789012345678901234567890.10}', "123456789012345678901234567890.10"),
        ('{"answer": [1, 2]}', None),
        ('{"result": 5}', None),
        ("The answer is 5", None),
        ("", None),
    ],
)
def test_json_answers_are_read(text: str, answer: str | None) -> None:
    assert json_answer(text) == answer


@pytest.mark.parametrize("text", ["{" * 100_000, '{"a":' * 50_000, '"answer": "' + "\\" * 100_000, "```" * 30_000])
def test_json_answers_are_read_in_time(text: str) -> None:
    start = time.perf_counter()
    json_answer(text)
    assert time.perf_counter() - start < 2


@given(st.text(alphabet='{}[]",:answer0123456789.` \n\\', max_size=80))
def test_any_text_gives_a_text_or_none(text: str) -> None:
    assert isinstance(json_answer(text), str | None)
