"""Which kind of words a text has, and where one ends: white space parts English words, jieba Chinese ones."""

from __future__ import annotations

import logging
import re
from functools import cache
from types import ModuleType

from eval.errors import UserError

LATIN_WORD = re.compile("[A-Za-z]+")
EDGES = re.compile(r"^\W+|\W+$")  # punctuation around a word
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


def is_chinese(text: str) -> bool:
    """Whether there are more Han characters than Latin words: an English text may name 北京."""
    return len(HAN.findall(text)) > len(LATIN_WORD.findall(text))


def words(text: str) -> list[str]:
    """The words of a text; of a Chinese one as jieba cuts it, without white space."""
    if not is_chinese(text):
        return text.split()
    return [word for word in _jieba().lcut(text) if not word.isspace()]


@cache
def _jieba() -> ModuleType:
    import jieba  # half a second: only who cuts Chinese waits for it

    jieba.setLogLevel(logging.WARNING)
    module: ModuleType = jieba
    return module


def missing(package: str, what: str) -> UserError:
    """The message for an optional package that is not there."""
    return UserError(f"{what} needs {package}: pip install {package}, or install the project with its eval extra")
