"""Splits labelled sentences so that the training set contains nothing of the test set.

    python examples/phrasebank_clean_split.py data/phrasebank/Sentences_50Agree.txt --out data/phrasebank

This writes clean_train.jsonl and clean_test.jsonl (sentence, label), which `train` and `eval` read. The published split
of financial_phrasebank trains on Sentences_50Agree, which contains every row of the test set, Sentences_66Agree.

Rows are `sentence@label` lines in UTF-8 or ISO-8859-1. Of sentences with the same words (ignoring case,
punctuation and spaces) one is kept, or none if their labels differ. Each label is split in the same proportion, with a
seed. Then test rows that share a passage with a training row, by the evaluation's contamination rule, are moved to the
training set.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the project can be imported without installation

from eval.ngram_overlap import Index, words
from zerotune.common.errors import UserError
from zerotune.common.files import write_atomically
from zerotune.data.labelled_lines import labelled_lines


class Row(NamedTuple):
    """A sentence and its label."""

    sentence: str
    label: str


def read(files: Sequence[Path]) -> list[Row]:
    """All rows in order. Raises UserError for a line without a label, or no file."""
    rows = []
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; financial_phrasebank's are called Sentences_50Agree.txt and so on")
        for number, sentence, label in labelled_lines(file):
            if not label:
                raise UserError(f"{file}:{number}: not sentence@label")
            rows.append(Row(sentence, label))
    return rows


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The first of the rows with the same words; none if their labels contradict each other."""
    by_words: dict[str, list[Row]] = {}
    for row in rows:
        by_words.setdefault(" ".join(words(row.sentence)), []).append(row)
    return [same[0] for same in by_words.values() if len({row.label for row in same}) == 1]


def split(rows: Sequence[Row], test_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and test rows, each label in the same proportion, both in the order of `rows`."""
    chosen: set[Row] = set()
    for label in sorted({row.label for row in rows}):
        own = [row for row in rows if row.label == label]
        random.Random(f"{seed} {label}").shuffle(own)
        chosen |= set(own[: round(len(own) * test_share)])
    return [row for row in rows if row not in chosen], [row for row in rows if row in chosen]


def without_shared_passages(train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Moves test rows that share a passage with training rows to the training set, until none does."""
    while True:
        index = Index([test])
        for row in train:
            index.scan(row, "")
        shared = index.found()
        if not shared:
            return train, test
        train = train + [test[k] for k in sorted(shared)]
        test = [row for k, row in enumerate(test) if k not in shared]


def counted(rows: Sequence[Row]) -> str:
    """The number of rows, in total and by label."""
    labels = ", ".join(f"{label} {count:,}" for label, count in sorted(Counter(row.label for row in rows).items()))
    return f"{len(rows):,} rows ({labels})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both files; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="files with sentence@label on each line")
    parser.add_argument("--out", type=Path, required=True, help="the folder for both files")
    parser.add_argument("--test_share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args(arguments)
    try:
        if not 0 < given.test_share < 1:
            raise UserError(f"--test_share {given.test_share}: must lie between 0 and 1")
        rows = read(given.files)
        kept = distinct(rows)
        train, first = split(kept, given.test_share, given.seed)
        train, test = without_shared_passages(train, first)
        for name, part in (("clean_train", train), ("clean_test", test)):
            lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in part]
            write_atomically(given.out / f"{name}.jsonl", "".join(lines))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print(f"{len(rows):,} rows read, {len(rows) - len(kept):,} of them repeated or contradictory and left out")
    print(f"{len(first) - len(test):,} test rows that share a passage with a training row were moved there")
    print(f"{given.out / 'clean_train.jsonl'}: {counted(train)}\n{given.out / 'clean_test.jsonl'}: {counted(test)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
