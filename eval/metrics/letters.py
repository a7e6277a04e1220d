"""Reads the option letter from an answer to a multiple-choice question, in Chinese or English."""

from __future__ import annotations

import re
from collections.abc import Iterator

from eval.metrics.writing_system import compatible

HEAD, TAIL = 2_000, 8_000  # characters at both ends of a long answer that are searched

_OPEN, _CLOSE = r"[\s*_`\"'“‘「『(（\[【<{$]{0,8}", r"[\s*_`\"'”’」』)）\]】>}]{0,4}"
# Not inside a word; "A" and "I" before a lower-case letter are an article and a pronoun; a lower-case letter is an
# option only if nothing but a closing mark follows.
_LETTER = (
    r"(?<![A-Za-z0-9])(?:(?P<letter>[A-Z])(?![A-Za-z0-9+#-]|['’]\w)(?!(?<=[AI])\s[a-z])"
    r"|(?P<small>[a-z])(?=[)\].:：、*]|\s*(?:\n|$)))"
)
_LETTER_AGAIN = _LETTER.replace("letter>", "again>").replace("small>", "again_small>")
_NAMES = r"(?:型|超|语言|股|站|级|类|等|轮|座|面|点|组|队|班|线|片|卡|淋巴|细胞|族|恤|盘|罩)"  # C语言 is not an option
_NEGATED = (
    rf"{_CLOSE}(?:选项|项)?\s*"
    r"(?:[是为]?[不错误没非]|都不|均不|(?:is|are|was)(?:n't| not| wrong| incorrect| false))"
)
_JOINT = r"\s*(?:[、,，/|&+]|和|或|与|及|\band\b|\bor\b)\s*"
_SEVERAL = re.compile(rf"{_CLOSE}{_JOINT}(?:选项|option\s)?{_OPEN}[A-Z](?![A-Za-z]|{_NEGATED})", re.IGNORECASE)
_ENDS_LIST = re.compile(rf"(?<![A-Za-z])[A-Z]{_CLOSE}{_JOINT}$")
_IS = (
    r"(?:[\s:：=*_,，]{0,8}(?:应该|应当|应|應|该|就|只能|会|可能|是|为|為|选项|选择|选"
    r"|would|should|must|be|is|are|the|option|Option|choice|letter)){0,6}"
)

_STRONG = re.compile(
    r"(?:答案|正解|答え|정답|正确的?(?:一项|选项|说法)?(?=[是为：:])"
    r"|[Aa]nswer|ANSWER|[Cc]orrect (?:option|choice|letter)|\\boxed)"
    rf"(?!不)[】\])）」』]?{_IS}[\s:：=은는は]{{0,8}}"
    rf"(?:\{{?\\text(?:bf)?)?{_OPEN}{_LETTER}"
)
_AFFIRMED = re.compile(
    rf"{_LETTER}{_CLOSE}(?:选项|项)?(?:的?(?:说法|描述|表述|叙述))?(?:才|就|都|均)?(?:是|为)?(?:最|完全|唯一)?(?:正确|对(?![不于比应照])|符合|合适)"
    rf"|{_LETTER_AGAIN}{_CLOSE}\s?(?:is|seems|must be|would be) (?:the )?(?:most |only )?(?:correct|right|best|true)\b"
)
_CHOSEN = re.compile(
    r"(?:(?<![不未别勿挑])(?<!不能)(?<!不应)(?<!不可)(?:选择|选(?!项)|選)"
    r"|(?<!not )(?<!n't )\b(?:[Cc]hoose|[Pp]ick|[Ss]elect|[Gg]o with))"
    rf"{_IS}[\s:：=]{{0,8}}{_OPEN}{_LETTER}"
)
_OPTION = re.compile(rf"(?:选项|\b(?:[Oo]ption|OPTION|[Cc]hoice)){_IS}[\s:：=]{{0,8}}{_OPEN}{_LETTER}")
_ALL = (
    r"(?!\W{0,4}A[.、:：)](?s:.){0,400}?(?:^|[\s。；;.])B[.、:：)])"  # the options again, or one verdict after another
)
_FIRST = re.compile(rf"^{_ALL}{_OPEN}{_LETTER}(?=\W|_|$|选|项|[是为对正因由])")
_BULLET = r"(?:[#>•✅✔☑👉→➡-]{1,6}\s+)?"
_ONLY = re.compile(
    r"(?:^|[\n。！？!?:：;；,，.]|\b(?i:is|be|it's|say|with|letter|think|but|so|therefore|definitely|probably)\b"
    r"(?! not)|(?<!不)[是为為即])"
    rf"\s*{_BULLET}{_OPEN}{_LETTER}(?=\W|_|$|选|项)"
)
_AFTER = (re.compile(_NEGATED, re.IGNORECASE), re.compile(_NAMES))


def read_letter(text: str, options: int) -> str | None:
    r"""The letter that the answer names, of the first `options` letters; None if it names none, or several.

    The first of these rules that finds any letter decides:

    - after "答案", "正确的是", "answer", "correct option", or in `\boxed{}`;
    - called correct ("D正确", "D is correct");
    - after "选" or "choose", then after "选项" or "option";
    - at the start of the text;
    - alone at the start of a sentence or line, or after words such as "is".

    Ignored are letters that are negated (A不对), part of a word (维生素A, vitamin A, C语言), or part of a list (A、B).
    """
    text = text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"
    text = compatible(text).strip()
    for pattern in (_STRONG, _AFFIRMED, _CHOSEN, _OPTION, _FIRST, _ONLY):
        named = set(_named(pattern, text))
        if named:
            letter = named.pop()
            return letter if not named and letter in {chr(ord("A") + k) for k in range(options)} else None
    return None


def _named(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """The letters that a pattern finds; a list of letters counts as "", which is not an option."""
    for found in pattern.finditer(text):
        letter, start, end = next((found[n].upper(), *found.span(n)) for n in pattern.groupindex if found[n])
        if _SEVERAL.match(text, end) or _ENDS_LIST.search(text, max(start - 8, 0), start):
            yield ""
        elif pattern is _AFFIRMED or not any(after.match(text, end) for after in _AFTER):
            yield letter
