"""Option letters in what models write: Chinese and English, and others where they say "answer"."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.letters import read_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" C", "C"),
        ("B. 土地", "B"),
        ("A。因为", "A"),
        ("答案是D", "D"),
        ("答案：**B**", "B"),
        ("因此答案应该是：\nB", "B"),
        ("选项A不对，答案是选项B", "B"),
        ("The correct answer is: option (C).", "C"),
        ("ANSWER: B", "B"),
        ("I think it is D", "D"),
        ("A magnet attracts iron.", None),
        ("A or B", None),
        ("E", None),
        ("Both", None),
        ("", None),
        ("Ｂ", "B"),
        ("答案：Ｂ", "B"),
        ("（Ｃ）", "C"),
        ("维生素A", None),
        ("答案是维生素A", None),
        ("缺乏维生素A会导致夜盲症", None),
        ("A、B、C都不对，D正确", "D"),
        ("A、B、C都不对", None),
        ("(B)", "B"),
        ("B.", "B"),
        ("答案：B", "B"),
        ("**B**", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("b) iron", "B"),
        ("a magnet", None),
        ("the answer is b.", "B"),
        ("Answer: (d)", "D"),
        ("答案是AB", None),
        ("答案：A、C", None),
        ("A和B", None),
        ("B or C", None),
        ("B/C", None),
        ("ABCD", None),
        ("A不对", None),
        ("A是错的，B是对的", "B"),
        ("有人选A，但答案是B", "B"),
        ("故选：C。", "C"),
        ("我选B", "B"),
        ("应选D", "D"),
        ("不选A", None),
        ("不选A，选B", "B"),
        ("C语言", None),
        ("答案是C语言", None),
        ("B超检查", None),
        ("It contains vitamin C.", None),
        ("Vitamin A", None),
        ("Plan B is a film", None),
        ("Option A is wrong. Option B is right.", "B"),
        ("Option B", "B"),
        ("I would choose C because", "C"),
        ("The best choice is D.", "D"),
        ("$\\boxed{B}$", "B"),
        ("\\boxed{\\text{C}}", "C"),
        ("正确选项为D", "D"),
        ("选项B是正确的", "B"),
        ("B选项正确", "B"),
        ("Only D is correct.", "D"),
        ("A and B are correct", None),
        ("答案不是A", None),
        ("The answer is not A", None),
        ("The answer is A.", "A"),
        ("The answer is A magnet", None),
        ("答案是A。解析：本题选A。", "A"),
        ("答案是A。不对，答案是B。", None),
        ("정답은 B", "B"),
        ("정답: C", "C"),
        ("答えはD", "D"),
        ("正解：A", "A"),
        ("答案為B", "B"),
        ("Ⓑ", "B"),
        ("C. vitamin A", "C"),
        ("C. 维生素A", "C"),
        ("D、以上都对", "D"),
        ("B：北京", "B"),
        ("> **Answer:** C", "C"),
        ("**Answer: C**", "C"),
        ("Answer：C", "C"),
        ("答案【B】", "B"),
        ("「A」", "A"),
        ("Let me think. The options are A, B, C and D. The answer is C", "C"),
        ("Thus, the final answer is $D$.", "D"),
        ("选择题的答案是B", "B"),
        ("本题考查维生素A的作用，故选B", "B"),
        ("A型血", None),
        ("T恤", None),
        ("I", None),
        ("I believe C", None),
        ("<C>", "C"),
        ("根据题意，D项符合", "D"),
        ("A选项错误，B选项错误，C选项正确，D选项错误", "C"),
        ("答案:b", "B"),
        ("ans: B", "B"),
        ("选A或B", None),
        ("C\n\n解析：A错误", "C"),
        ("D. A and B", "D"),
        ("选C项", "C"),
        ("C++", None),
        ("C#", None),
        ("The correct answer is B, not A.", "B"),
        ("B, because A is wrong", "B"),
        ("B，不是A", "B"),
        ("Answer: A, B", None),
        ("答案：A,因为B不对", "A"),
        ("A: yes", "A"),
        ("答案：D：A、B都对", "D"),
        ("正确答案是（A）维生素A", "A"),
        ("选项A：太高。\n选项B：太低。\n综上，选C", "C"),
        ("Option A is a fruit. Option B is a nut. I choose C.", "C"),
        ("答案：A，B选项错误", "A"),
        ("答案是A，C是错误的", "A"),
        ("A和B都不对，选C", "C"),
        ("C是唯一正确的", "C"),
        ("A、B错误，正确的是C", "C"),
        ("正确的一项是：D", "D"),
        ("Option A is wrong. The correct option is C.", "C"),
        ("So, C.", "C"),
        ("D项的说法是正确的", "D"),
        ("It is not A, it is B", "B"),
        ("answer: c\nbecause", "C"),
        ("A is incorrect, B is correct", "B"),
        ("The answer is (A) or (B)?", None),
        ("答案选C", "C"),
        ("本题答案C", "C"),
        ("解：由题意得x=3，故答案为：B．", "B"),
        ("首先排除A和C，因此选D。", "D"),
        ("A. 错误。B. 错误。C. 正确。D. 错误。", None),
        ("A. 北京\nB. 上海\nC. 广州", None),
        ("B. 错误", "B"),
        ("C. 广州\n\n解析：\nA. 错\nB. 错", "C"),
        ("The letter is D", "D"),
        ("**Final answer**: **A**", "A"),
        ("Answer is: [C]", "C"),
        ("我认为答案应该是选项D，因为它最符合题意。", "D"),
        ("无法确定", None),
        ("None of the above", None),
        ("以上都不对", None),
        ("答案不确定，可能是A或B", None),
        ("C是错的", None),
        ("【答案】C", "C"),
        ("[答案] C", "C"),
        ("【答案】C\n【解析】A、B错误", "C"),
        ("{'answer': 'B'}", "B"),
        ("The answer is 'B'.", "B"),
        ("I'm sure", None),
        ("点A'在直线上", None),
        ("- B", "B"),
        ("## C", "C"),
        ("> D", "D"),
        ("✅ B", "B"),
        ("- A\n- B", None),
        ("\u200eD", "D"),
        ("\ufeffD", "D"),
        ("𝐁", "B"),
        ("B|C", None),
        ("The answer is therefore B", "B"),
        ("Definitely B", "B"),
        ("A and B are wrong, so C", "C"),
        ("The answer is not A but B", "B"),
    ],
)
def test_letters_are_read(text: str, letter: str | None) -> None:
    assert read_letter(text, 4) == letter


@given(st.text(alphabet="答案选项是 ABCDa.:。\n", max_size=40), st.integers(2, 5))
def test_a_letter_read_stands_in_the_text_and_among_the_options(text: str, options: int) -> None:
    found = read_letter(text, options)
    assert found is None or (found in text.upper() and found in "ABCDE"[:options])


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in text)


LEADS = ["", "答案：", "答案是", "The answer is ", "故选", "**Answer:** ", "因此，正确选项是", "We get 4.\nAnswer: "]
LEADS += ["根据维生素A的作用，选"]
FORMS = ["{}", "({})", "**{}**", "{}.", "【{}】", "{}。", "{}选项", "{}\n\n因为题意"]


@given(st.sampled_from(LEADS), st.sampled_from("ABCD"), st.sampled_from(FORMS))
def test_a_letter_is_read_behind_any_lead_in_any_form_and_width(lead: str, letter: str, form: str) -> None:
    text = lead + form.format(letter)
    assert read_letter(text, 4) == letter
    assert read_letter(lead + form.format(wide(letter)), 4) == letter


@given(st.text(alphabet="答案选项是 ABCDab.:。，、不对正确\n()", max_size=30))
def test_width_changes_nothing(text: str) -> None:
    assert read_letter(wide(text), 4) == read_letter(text, 4)


@pytest.mark.parametrize(
    "piece",
    ["选", "答案是", "答案:", "A", "A ", ":", "A、", "*", " ", "answer ", "is ", "(", "option ", "选项", "A和"],
)
def test_letters_are_read_in_time(piece: str) -> None:
    start = time.process_time()
    read_letter(piece * (100_000 // len(piece)), 4)
    assert time.process_time() - start < 1
