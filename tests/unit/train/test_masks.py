"""What is learned in each format, token by token, written out.

One word a token, in [brackets] where it is learned; ␣ is a space and ⏎ the end of a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data_tools import corpus_of

Row = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be kind"}
FIRST = [{"role": "user", "content": "What is 1 plus 2?"}, {"role": "assistant", "content": "1 plus 2 is 3."}]
SECOND = [{"role": "user", "content": "1加2等于多少？"}, {"role": "assistant", "content": "1加2等于3。"}]
SHAREGPT = [
    {"from": "human", "value": "1加2等于多少？"},
    {"from": "function_call", "value": "1 plus 2"},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "1加2等于3。"},
]

CHATML: dict[str, tuple[str, Row, str]] = {
    "qa": (
        "qa",
        {"question": "What is 1 plus 2?", "answer": "1 plus 2 is 3."},
        """
        <|im_start|> us er ⏎ What ␣is ␣ 1 ␣plus ␣ 2 ? <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [1] [␣plus] [␣] [2] [␣is] [␣] [3] [.] [<|im_end|>] ⏎
        """,
    ),
    "qa with a system message": (
        "qa",
        {"system": "Be kind", "question": "What is 1 plus 2?", "answer": "3."},
        """
        <|im_start|> s y st em ⏎ B e ␣kind <|im_end|> ⏎
        <|im_start|> us er ⏎ What ␣is ␣ 1 ␣plus ␣ 2 ? <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [3] [.] [<|im_end|>] ⏎
        """,
    ),
    "pr": (
        "pr",
        {"prompt": "The opposite of big is", "response": "small"},
        """
        <|im_start|> us er ⏎ The ␣opposite ␣of ␣big ␣is <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [small] [<|im_end|>] ⏎
        """,
    ),
    "io": (
        "io",
        {"instruction": "把数字写成汉字。", "input": "37", "output": "三十七"},
        """
        <|im_start|> us er ⏎ 把数字写成汉字 。 ⏎ 3 7 <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [三] [十] [七] [<|im_end|>] ⏎
        """,
    ),
    "io without input": (
        "io",
        {"instruction": "What is 1 plus 2?", "output": "3."},
        """
        <|im_start|> us er ⏎ What ␣is ␣ 1 ␣plus ␣ 2 ? <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [3] [.] [<|im_end|>] ⏎
        """,
    ),
    "chat, whose last question has no answer": (
        "chat",
        {"messages": [SYSTEM, *FIRST, *SECOND, FIRST[0]]},
        """
        <|im_start|> s y st em ⏎ B e ␣kind <|im_end|> ⏎
        <|im_start|> us er ⏎ What ␣is ␣ 1 ␣plus ␣ 2 ? <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [1] [␣plus] [␣] [2] [␣is] [␣] [3] [.] [<|im_end|>] ⏎
        <|im_start|> us er ⏎ 1 加 2 等于多少 ？ <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [1] [加] [2] [等于] [3] [。] [<|im_end|>] ⏎
        """,
    ),
    "ShareGPT, with a call of a function and its result": (
        "chat",
        {"conversations": SHAREGPT},
        """
        <|im_start|> us er ⏎ 1 加 2 等于多少 ？ <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [1] [␣plus] [␣] [2] [<|im_end|>] ⏎
        <|im_start|> t ool ⏎ 3 <|im_end|> ⏎
        <|im_start|> as s i st ant ⏎ [1] [加] [2] [等于] [3] [。] [<|im_end|>] ⏎
        """,
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_qwen2)


def tokens(row: Row, form: str, folder: Path, template: str, tokenizer: Any) -> list[str]:
    """The row as it is learned from, in the notation above."""
    corpus = corpus_of(folder, [row], form, tokenizer, chat_template=template, max_length_tokens=200)
    assert len(corpus.train) == 1
    found = []
    for token, label in zip(*corpus.train.tokens(0), strict=True):
        assert label in (-100, token)
        shown = tokenizer.decode([token]).replace(" ", "␣").replace("\n", "⏎")
        found.append(shown if label == -100 else f"[{shown}]")
    return found


@pytest.mark.parametrize("template", ["chatml", "tokenizer"])
@pytest.mark.parametrize("name", CHATML)
def test_conversations(name: str, template: str, tmp_path: Path, tokenizer: Any) -> None:
    """With the tokenizer's own template, which marks what is generated, and with one that does not."""
    form, row, expected = CHATML[name]
    assert tokens(row, form, tmp_path, template, tokenizer) == expected.split()


def test_a_conversation_in_plain_headings(tmp_path: Path, tokenizer: Any) -> None:
    expected = """
        # # # ␣S y st em : ⏎ B e ␣kind ⏎ ⏎
        # # # ␣ Us er : ⏎ What ␣is ␣ 1 ␣plus ␣ 2 ? ⏎ ⏎
        # # # ␣A s s i st ant : ⏎ [1] [␣plus] [␣] [2] [␣is] [␣] [3] [.] [<|im_end|>]
    """
    assert tokens({"messages": [SYSTEM, *FIRST]}, "chat", tmp_path, "plain", tokenizer) == expected.split()


def test_a_text_is_learned_but_for_its_first_token(tmp_path: Path, tokenizer: Any) -> None:
    """Nothing stands before the first one to predict it from."""
    expected = "One [␣day] [,] [␣Max] [␣saw] [␣a] [␣duck] [.] [⏎] [下雨了] [<|im_end|>]"
    row = {"text": "One day, Max saw a duck.\n下雨了"}
    assert tokens(row, "text", tmp_path, "tokenizer", tokenizer) == expected.split()
