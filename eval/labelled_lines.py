"""Text files with `sentence@label` on each line, as financial_phrasebank is published: UTF-8, or else ISO-8859-1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

LOOKED_AT = 20  # lines; where all of them end in a label the file is of this kind
LABEL = re.compile(r"[A-Za-z][\w-]*")


def is_labelled(path: Path) -> bool:
    """Whether the first filled lines of a file, two at least, all end in a label."""
    with path.open("rb") as handle:
        filled = (line for line in handle if line.strip())
        first = list(itertools.islice(filled, LOOKED_AT))
    return len(first) > 1 and all(_parts(line.decode("iso-8859-1")) for line in first)


def labelled_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, sentence and label of each filled line; an empty label where the line does not end in one."""
    for number, line in enumerate(decoded(path.read_bytes()).split("\n"), start=1):
        if line.strip():
            yield number, *(_parts(line) or (line.strip(), ""))


def decoded(raw: bytes) -> str:
    """The text of a file in one of the two encodings; every byte is a character of the second."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")


def _parts(line: str) -> tuple[str, str] | None:
    """Sentence and label. A sentence has more than one word: an address (name@host) is none."""
    sentence, _, label = line.strip().rpartition("@")
    return (sentence.strip(), label) if LABEL.fullmatch(label) and len(sentence.split(None, 1)) > 1 else None
