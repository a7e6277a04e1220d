"""Text files with `sentence@label` on each line, as financial_phrasebank is published: UTF-8, or else ISO-8859-1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from zerotune.data.text_files import lines, whole

LOOKED_AT = 20  # lines; where all of them end in a label the file is of this kind
LABEL = re.compile(r"[A-Za-z][\w-]*")


def is_labelled(path: Path, encoding: str | None = None) -> bool:
    """Whether the first filled lines of a file, two at least, all end in a label."""
    filled = (text for _, text, _ in lines(path, encoding) if text.strip())
    first = list(itertools.islice(filled, LOOKED_AT))
    return len(first) > 1 and all(map(_parts, first))


def labelled_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str, str]]:
    """Number, sentence and label of each filled line; an empty label where the line does not end in one."""
    for number, line in enumerate(decoded(path, encoding).split("\n"), start=1):
        if line.strip():
            yield number, *(_parts(line) or (line.strip(), ""))


def decoded(path: Path, encoding: str | None = None) -> str:
    """The text of a file: in the encoding that is said, else in UTF-8 or ISO-8859-1, where any byte is valid."""
    text, problem = whole(path, encoding)
    return whole(path, "iso-8859-1")[0] if problem and not encoding else text


def _parts(line: str) -> tuple[str, str] | None:
    """Sentence and label. A sentence has more than one word: an address (name@host) is none."""
    sentence, _, label = line.strip().rpartition("@")
    return (sentence.strip(), label) if LABEL.fullmatch(label) and len(sentence.split(None, 1)) > 1 else None
