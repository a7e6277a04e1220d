"""Reads the label from an answer that was generated after "Label:", in any script."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from eval.metrics.exact_match import normalise
from eval.metrics.labels import UNREADABLE
from eval.metrics.writing_system import HAN, UNSPACED, jieba_tokens

LONGEST = 400  # characters of the line that are searched
_LEAD = regex.compile(  # Label: positive; 答案是好评
    r"[\s*_#>\"'“‘(（\[【<]*(?:(?:the )?(?:label|answer|category)\W{0,4}(?:[:：=]|is\b)"
    r"|(?:标签|答案|类别|分类|ラベル|答え)\W{0,4}[:：是为は])\s*",
    regex.IGNORECASE,
)
_LETTER, _SPACED = regex.compile(r"[\p{L}\p{M}\p{N}_]"), regex.compile(rf"[[\p{{L}}\p{{M}}_]--[{UNSPACED}]]", regex.V1)
_HAN = regex.compile(f"[{HAN}]")
# Endings that may follow a label without a space.
_ENDINGS = ("です", "だ", "である", "입니다", "이다", "이에요", "예요", "ครับ", "ค่ะ", "คะ", "เพราะ")
_JOINT = regex.compile(r"[\s\p{P}]*(?:\b(?:and|or)\b|和|与|或|及|と|か)?[\s\p{P}]*")
_GLUED = regex.compile(r"[+#%^]|[.:/-][0-9]")  # C++ is not C, 1.5 not 1


def first_label(text: str, labels: Sequence[str]) -> int:
    """Index of the label with which the first line of `text` starts, as whole words; else `UNREADABLE`.

    It may follow "Label:", "答案是" and the like, and is normalised as in `exact_match`. Of several matching labels
    ("not", "not equivalent") the longest counts; of labels equal after normalisation, the one spelled exactly so. In
    scripts without spaces a label must end before punctuation, at a word boundary of jieba, or before a known ending.
    A second label directly after it ("好评或差评", "positive/negative") makes the answer unreadable, as does a negation
    before it ("not positive", "不是好评").
    """
    line = next(iter(text.strip().splitlines()), "")[:LONGEST]
    lead = _LEAD.match(line)
    line = line[lead.end() :] if lead else line
    forms, norm = [normalise(label) for label in labels], normalise(line)
    fitting = {
        k: end for k, form in enumerate(forms) if form and norm.startswith(form) and (end := _end(line, norm, form))
    }
    if not fitting:
        return UNREADABLE
    longest = max(len(forms[k]) for k in fitting)
    best = [k for k in fitting if len(forms[k]) == longest]
    exact = [k for k in best if line.strip().startswith(labels[k].strip())]
    best = exact if len(best) > 1 else best
    if len(best) != 1 or _another_label_follows(
        line[fitting[best[0]] :], {form for form in forms if form != forms[best[0]]}
    ):
        return UNREADABLE
    return best[0]


def _end(line: str, norm: str, form: str) -> int:
    """Where the label ends in the line; 0 if that is within a word or number."""
    following = norm[len(form) :]
    if _GLUED.match(following) or (following[:1].isdigit() and form[-1].isdigit()):
        return 0
    ends = (k for k in range(1, len(line) + 1) if normalise(line[:k]) == form)
    end = next(ends, 0)
    rest = line[end:]
    if not end or not rest or not _LETTER.match(rest):
        return end
    if rest.startswith(_ENDINGS):
        return end
    if regex.match(r"\p{M}", rest) or (_SPACED.match(rest) and _SPACED.match(form[-1])):
        return 0
    if not regex.match(f"[{UNSPACED}]", rest) or form[-1].isdigit():
        return end
    if not _HAN.match(rest) or not _HAN.match(form[-1]):
        return 0 if regex.match(f"[{UNSPACED}]", form[-1]) else end
    return end if _ends_word(line, end) else 0


def _ends_word(line: str, end: int) -> bool:
    """Whether a Chinese word ends at `end`."""
    place = len(line) - len(line.lstrip())
    for token in jieba_tokens(line):
        place = line.find(token, place) + len(token)
        if place >= end:
            return place == end
    return False


def _another_label_follows(rest: str, others: set[str]) -> bool:
    """Whether another label follows, after nothing but punctuation or a conjunction."""
    joint = _JOINT.match(rest)
    following = rest[joint.end() :] if joint else rest
    norm = normalise(following[:LONGEST])
    return any(norm.startswith(form) and bool(_end(following, norm, form)) for form in others if form)
