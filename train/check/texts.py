"""What the rows' own texts hold, before any template: bytes, control characters, mojibake, long words, languages.

Runs in worker processes: this file must not import torch. Shape suffix: n rows.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from ftfy.badness import is_bad
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.data.sources import NumberedRow, Source
from train.data.tokenize import Settings, read_row
from train.data.tokenize_workers import ROWS_ALONE, Task, tasks
from zerotune.data.conversations import Conversation, said_in
from zerotune.data.fields import RowError
from zerotune.data.formats import Example
from zerotune.data.labelled import Labelled
from zerotune.data.preference import Continuation, Preference
from zerotune.data.raw_row import BadRow
from zerotune.data.tagged import Tagged

FLAGS = {"control": 1, "mojibake": 2, "long_word": 4}
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ufeff]")  # not tab, line feed, carriage return
LONG_WORD = re.compile("[!-\u0dff]{100,}")  # up to the scripts that put no spaces between words (Thai, Chinese, ...)
# Without one of these ftfy finds nothing; typographic quotes and dashes alone are no reason to ask it.
SUSPICIOUS = re.compile(
    "[\x80-\u0180\u0192\u02c6-\u02dd\u0370-\u04ff\u2020-\u2022\u2030\u20ac\u2122\u2300-\u25ff\uf000-\uf8ff\ufb01\ufb02]"
)
REPLACED = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯")  # what decoders put in place of bytes that they cannot read
MOST_CHARACTERS = 2000  # of a text, for ftfy
LANGUAGE_ROWS, LANGUAGE_CHARACTERS = 10_000, 300  # of a source, and of a row, by which a language is guessed
SHORT, UNCLEAR = "short", "unclear"
FEWEST_BYTES, LEAST_CONFIDENCE = 30, 0.7  # of the letters of a text, and of the guess


@dataclass
class Texts:
    """number_n: of the row in its source. bytes_n: of its texts in UTF-8. flags_n: sums of FLAGS. languages: of each
    row, empty if it was not guessed.
    """

    number_n: NDArray[np.int64]
    bytes_n: NDArray[np.int64]
    flags_n: NDArray[np.uint8]
    languages: list[str]


def scan(source: Source, settings: Settings, number_n: NDArray[np.int64], processes: int, shows: bool = True) -> Texts:
    """The texts of the rows with these numbers, in `processes` (0: one per core). shows: a progress bar."""
    last = int(number_n.max(initial=-1))
    is_wanted_n = np.zeros(last + 1, np.bool_)
    is_wanted_n[number_n] = True
    total = int(is_wanted_n.sum())
    every = -(-total // LANGUAGE_ROWS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not shows or total <= ROWS_ALONE) as progress:
        bar = progress.add_task(f"read the texts of {source.key} (rows)", total=total)
        parts = []
        for part in _scanned(_wanted(source, is_wanted_n), settings, every, processes, total):
            parts.append(part)
            progress.advance(bar, len(part.number_n))
    empty = Texts(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), [])
    parts = [empty, *parts]
    return Texts(
        np.concatenate([part.number_n for part in parts]),
        np.concatenate([part.bytes_n for part in parts]),
        np.concatenate([part.flags_n for part in parts]),
        [language for part in parts for language in part.languages],
    )


def _wanted(source: Source, is_wanted_n: NDArray[np.bool_]) -> Iterator[NumberedRow]:
    for row in source.rows():
        if row.number >= len(is_wanted_n):
            return
        if is_wanted_n[row.number]:
            yield row


def _scanned(
    rows: Iterable[NumberedRow], settings: Settings, every: int, processes: int, total: int
) -> Iterator[Texts]:
    work = tasks(rows, 0, lambda: False)
    processes = processes or len(os.sched_getaffinity(0))
    reading = (settings.format, settings.columns, settings.label_spec.asks, every)
    if processes == 1 or total <= ROWS_ALONE:
        yield from (_scan(task, *reading) for task in work)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running: deque[Any] = deque()
        for task in work:
            running.append(pool.submit(_scan, task, *reading))
            if len(running) > 2 * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _scan(task: Task, kind: str, columns: Mapping[str, str], asks: bool, every: int) -> Texts:
    numbers, sizes, flags, languages = list[int](), list[int](), list[int](), list[str]()
    for row in task.rows:
        if isinstance(row.item, BadRow):
            continue
        try:
            texts = texts_of(read_row(row.item, kind, columns, None, asks))
        except RowError:
            continue
        numbers.append(row.number)
        sizes.append(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts))
        flags.append(flags_of(texts))
        languages.append("" if row.number % every else language("\n".join(texts)))
    return Texts(np.array(numbers, np.int64), np.array(sizes, np.int64), np.array(flags, np.uint8), languages)


def texts_of(example: Example) -> list[str]:
    """The texts of a row, without what a template adds."""
    if isinstance(example, str):
        return [example]
    if isinstance(example, Labelled):
        return [*example.sentences, *([example.label] if isinstance(example.label, str) else [])]
    if isinstance(example, Tagged):
        return [" ".join(example.words)]
    if isinstance(example, Continuation):
        return [example.prompt, example.answer]
    if isinstance(example, Preference):
        return [text for side in (example.chosen, example.rejected) for text in _side(side)]
    return [said_in(message) for message in example.messages]


def _side(side: str | Conversation) -> list[str]:
    return [side] if isinstance(side, str) else texts_of(side)


def flags_of(texts: Sequence[str]) -> int:
    """A sum of FLAGS."""
    flags = 0
    for text in texts:
        flags |= FLAGS["long_word"] * bool(LONG_WORD.search(text)) | FLAGS["control"] * bool(CONTROL.search(text))
        if not text.isascii() and not flags & FLAGS["mojibake"] and _is_garbled(text):
            flags |= FLAGS["mojibake"]
    return flags


def _is_garbled(text: str) -> bool:
    if REPLACED.search(text):
        return True
    text = text[:MOST_CHARACTERS]
    return bool(SUSPICIOUS.search(text) and is_bad(text))


def language(text: str) -> str:
    """An ISO 639 code by py3langid, which knows 97 languages; SHORT or UNCLEAR."""
    text = text[:LANGUAGE_CHARACTERS]
    if sum(len(letter.encode()) for letter in text if letter.isalpha()) < FEWEST_BYTES:
        return SHORT
    name, confidence = _identifier().classify(text)
    return str(name) if confidence >= LEAST_CONFIDENCE else UNCLEAR


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
