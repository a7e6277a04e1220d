"""Holds out rows for validation, and finds training rows that are also in the validation data.

Shape suffix: n rows of tokens of all parts, one part after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train.data.rows import draw
from train.data.token_dataset import Part
from zerotune.common.errors import UserError

NO_OVERLAP = "overlap with the validation data: no row and no question"
SHOWN = 3


def split(parts: Sequence[Part], share: float, seed: int) -> tuple[list[Part], list[Part]]:
    """(training, held out): exactly `share` of the source rows, drawn with the seed; windows of a row stay together.

    Raises:
        UserError: Too few rows.
    """
    drawn_n = _joined([draw_held_out(seed, part.source, part.column("number_n")) for part in parts])
    first_n = _joined([is_first(part.column("number_n")) for part in parts])
    held_n = drawn_n < limit_of_held_out(drawn_n[first_n], share)
    return _only(parts, ~held_n), _only(parts, held_n)


def draw_held_out(seed: int, source: int, number_n: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A random number for each row of a source, by the row's number: the lowest are held out."""
    return draw(seed, f"held out {source}", number_n)


def limit_of_held_out(drawn_n: NDArray[np.uint64], share: float) -> np.uint64:
    """The limit below which `share` of the rows lie. Raises UserError for too few rows."""
    ordered = np.sort(drawn_n)
    count = max(1, round(share * len(ordered)))
    if count >= len(ordered):
        raise UserError(
            f"data.validation_fraction: {share:g} of {len(ordered)} row(s) leaves no rows for training or validation;"
            " set data.validation to a separate source (a text file is one row, unless lines with <|endoftext|>"
            " divide it)"
        )
    return np.uint64(ordered[count])


def is_first(number_n: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A mask of the first window of each source row; the windows of a row are adjacent."""
    mask_n: NDArray[np.bool_] = np.diff(number_n, prepend=-1) != 0
    return mask_n


def _only(parts: Sequence[Part], kept_n: NDArray[np.bool_]) -> list[Part]:
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [part.only(kept) for part, kept in zip(parts, np.split(kept_n, ends), strict=True)]


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


def without_overlap(
    train: Sequence[Part], held: Sequence[Part], policy: Literal["warn", "error", "drop"]
) -> tuple[list[Part], list[str]]:
    """(training parts, without overlapping rows if the policy is drop; lines about the overlap for the user).

    Two rows overlap if their texts are equal (ignoring NFKC forms, case and white space), or their prompts are, with
    another answer.

    Raises:
        UserError: There is overlap and the policy is error.
    """
    is_same_n, is_asked_n = overlap(train, held)
    first_n = _joined([is_first(part.column("number_n")) for part in train])
    same, asked = int((is_same_n & first_n).sum()), int((is_asked_n & first_n).sum())
    if not same and not asked:
        return list(train), [NO_OVERLAP]
    examples = [
        *_examples(train, held, is_same_n & first_n, "full_n"),
        *_examples(train, held, is_asked_n & first_n, "prompt_n"),
    ]
    text = (
        f"overlap with the validation data: {same:,} training row(s) are there too, and {asked:,} more have the same"
        f" prompt with another answer, such as {'; '.join(examples[:SHOWN])}"
    )
    if policy == "error":
        raise UserError(f"{text}. Fix the data, or set data.on_overlap to warn or drop")
    if policy == "warn":
        return list(train), [f"WARNING: {text} (data.on_overlap: drop removes them from training)"]
    return _only(train, ~(is_same_n | is_asked_n)), [f"{text}: removed from training"]


def overlap(train: Sequence[Part], held: Sequence[Part]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the training rows that are also held out, and of the others whose prompt is."""
    full_n, prompt_n = (_joined([part.column(name) for part in train]) for name in ("full_n", "prompt_n"))
    is_same_n = np.isin(full_n, _joined([part.column("full_n") for part in held]))
    is_asked_n = ~is_same_n & (prompt_n != 0) & np.isin(prompt_n, _joined([part.column("prompt_n") for part in held]))
    return is_same_n, is_asked_n


def _examples(train: Sequence[Part], held: Sequence[Part], hit_n: NDArray[np.bool_], name: str) -> list[str]:
    hash_n, held_n = (_joined([part.column(name) for part in parts]) for parts in (train, held))
    rows = np.flatnonzero(hit_n)[:SHOWN]
    return [f"{_place(train, row)} = {_place(held, int(np.argmax(held_n == hash_n[row])))}" for row in rows.tolist()]


def _place(parts: Sequence[Part], row: int) -> str:
    for part in parts:
        if row < len(part):
            return part.place(part.where(row))
        row -= len(part)
    raise IndexError(row)
