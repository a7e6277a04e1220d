"""Determines the writing system of a pair of texts, normalises texts, and splits them into words, for all metrics.

Words depend on one of three kinds of writing:

- CHINESE: jieba splits words.
- UNSPACED: Japanese, Thai, Lao, Khmer, Burmese, Tibetan and other scripts without spaces between words. There is no
  dictionary for them, so every letter with its marks (a grapheme cluster) counts as a word.
- SPACED: all others. A word is a run of letters, marks and digits.

Words of another script inside a text follow their own rule: in a Thai text, "Bangkok" is one word.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Iterator
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Literal

import regex

from zerotune.common.errors import UserError

HAN = r"\p{Han}"
KANA = r"\p{Hiragana}\p{Katakana}"
UNSPACED = (  # scripts whose words are written without a space between them
    rf"{HAN}{KANA}\p{{Bopomofo}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{Tai_Le}}\p{{New_Tai_Lue}}\p{{Tai_Tham}}"
    r"\p{Tai_Viet}\p{Javanese}\p{Balinese}\p{Tibetan}"
)
IN_WORD = r"\p{L}\p{M}\p{N}"
LONGEST_RUN = 1000  # Han characters per call of jieba, whose time is quadratic in an unbroken run
UNKNOWN = "<unk>"  # a word outside the vocabulary, in a tokenised corpus
MOST_MARKS = 30  # on one letter, as in Unicode's stream-safe format (UAX #15): sorting marks takes quadratic time

_SPACED_WORD = regex.compile(rf"[[{IN_WORD}]--[{UNSPACED}]]+", regex.V1)
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}]&&\p{{L}}]", regex.V1)
_HAN, _KANA, _HAN_RUN = regex.compile(f"[{HAN}]"), regex.compile(f"[{KANA}]"), regex.compile(f"[{HAN}]+")
_ASCII_LETTER = re.compile("[A-Za-z]")
_WORD = regex.compile(rf"[[{UNSPACED}]&&\p{{L}}]\p{{M}}*|[[{IN_WORD}]--[[{UNSPACED}]&&\p{{L}}]]+", regex.V1)
_PLAIN = re.compile("[\\x00-\\x7f\u2010-\u2027\u3001\u3002\u3008-\u3011\u4e00-\u9fff]*")  # texts with simple words
_PLAIN_WORD = re.compile("[A-Za-z0-9]+|[\u4e00-\u9fff]")
_ASCII_RUNNING = re.compile(rf"{UNKNOWN}|[A-Za-z0-9](?:\S*[A-Za-z0-9])?")
_RUNNING = regex.compile(rf"{UNKNOWN}|[{IN_WORD}](?:\S*[{IN_WORD}])?")
_A_LETTER = regex.compile(f"[{IN_WORD}]")
_EDGES = regex.compile(rf"^[^{IN_WORD}]+|[^{IN_WORD}]+$")
# Found only in tokenised corpora: marks, escapes, joints as in "five @-@ year", "do n't", "wor@@ d".
_MARK = (r"(?i)</?(?:s|eos|bos|pad|sep|cls|mask|br|p)\s*/?>|\[(?:CLS|SEP|PAD|EOS|BOS)\]|-(?:[LR][RSC]B)-", " ")
_JOINT = (r"\s@([-,.])@\s|@@\s|\s(?=(?:n't|'(?:s|t|re|ve|ll|d|m))\b)", r"\1")
_TOKENISED = regex.compile(rf"{_MARK[0]}|{_JOINT[0]}|&(?:apos|quot|amp|lt|gt|#91|#93|#124);")
_MANY_MARKS = regex.compile(rf"(\p{{M}}{{{MOST_MARKS}}})\p{{M}}+")
# Joiners, marks of direction, soft hyphens, variation selectors; not the tags in the flag of Wales.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--[\U000E0020-\U000E007F]]+", regex.V1)
_OTHER_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)


class Writing(Enum):
    """How a text separates words."""

    CHINESE = "chinese"
    UNSPACED = "unspaced"
    SPACED = "spaced"


def writing(reference: str, prediction: str = "") -> Writing:
    """The writing of a pair of texts, decided by the reference, or by the prediction if the reference has no letter.

    A text is unspaced if it has at least as many letters of unspaced scripts as words of other scripts ("AI技术", but
    not an English sentence that mentions 北京). An unspaced text is Chinese if most of these letters are Han and less
    than a tenth of Han and kana is kana.
    """
    for text in (reference, prediction):
        if text.isascii():
            if _ASCII_LETTER.search(text):
                return Writing.SPACED
            continue
        letters = len(_UNSPACED_LETTER.findall(text))
        spaced = sum(not word.isdecimal() for word in _SPACED_WORD.findall(text))
        if letters and letters >= spaced:
            han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
            return Writing.CHINESE if 2 * han > letters and 10 * kana < han + kana else Writing.UNSPACED
        if spaced:
            return Writing.SPACED
    return Writing.SPACED


def compatible(text: str) -> str:
    """The text in Unicode's NFKC, without invisible characters, with digits of every script as 0 to 9.

    Marks beyond the thirtieth on a letter are dropped, since they would take quadratic time.
    """
    if text.isascii():
        return text
    text = _normalized("NFKC", _INVISIBLE.sub("", text))
    text = _MANY_MARKS.sub(r"\1", text)
    return str(_OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text))


def composed(text: str) -> str:
    """The text in Unicode's NFC, so that composed and decomposed forms are equal."""
    return text if text.isascii() else _normalized("NFC", text)


def folded(text: str) -> str:
    """Equal for upper and lower case, full and half width, composed and decomposed forms; idempotent."""
    once = compatible(text.casefold())
    lower = once.casefold()  # again for letters that only NFKC turns into capitals
    return once if lower == once else compatible(lower)


def words(text: str, written: Writing | None = None) -> list[str]:
    """The words of a text, without surrounding punctuation; a word has at least one letter or digit.

    A tokenised corpus is untokenised first: "five @-@ year" is one word, as is "do n't", and marks of beginnings and
    ends are dropped. `UNKNOWN` counts as a word.

    Args:
        written: `writing` of the pair that the text belongs to; None: of the text alone.
    """
    match written or writing(text):
        case Writing.CHINESE:
            found = jieba_tokens(text)
            return [token if token.isalnum() else _EDGES.sub("", token) for token in found if _A_LETTER.search(token)]
        case Writing.UNSPACED:
            return tokens(text, Writing.UNSPACED)
        case Writing.SPACED:
            text = untokenised(text)
            return list((_ASCII_RUNNING if text.isascii() else _RUNNING).findall(text))


def untokenised(text: str) -> str:
    """Undo the tokenisation of a corpus (WikiText, Penn Treebank, Moses, byte pairs)."""
    if not _TOKENISED.search(text):
        return text
    joined: str = regex.sub(*_JOINT, html.unescape(text))
    return str(regex.sub(*_MARK, joined))


def tokens(text: str, written: Writing) -> list[str]:
    """The tokens that ROUGE counts: runs of letters and digits, as in rouge-score; single letters of unspaced scripts;
    words and punctuation of a Chinese text.
    """
    if written is Writing.CHINESE:
        return jieba_tokens(text)
    return list((_PLAIN_WORD if _PLAIN.fullmatch(text) else _WORD).findall(text))  # for speed


def jieba_tokens(text: str) -> list[str]:
    """Words and punctuation of a Chinese text by jieba, without white space."""
    return [token for part in _parts(text) for token in _jieba().lcut(part) if not token.isspace()]


def _normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    return unicodedata.normalize(form, _MANY_MARKS.sub(r"\1", text))


def _parts(text: str) -> Iterator[str]:
    """Split the text where an unbroken run of Han characters is too long for jieba."""
    start = 0
    for run in _HAN_RUN.finditer(text):
        while run.end() - max(run.start(), start) > LONGEST_RUN:
            end = max(run.start(), start) + LONGEST_RUN
            yield text[start:end]
            start = end
    yield text[start:]


@cache
def _jieba() -> ModuleType:
    import jieba  # takes half a second, so only when Chinese text is split

    jieba.setLogLevel(logging.WARNING)
    module: ModuleType = jieba
    return module


def missing(package: str, what: str) -> UserError:
    """The error for a missing optional package."""
    return UserError(f"{what} needs {package}: pip install {package}, or install the project with its eval extra")
