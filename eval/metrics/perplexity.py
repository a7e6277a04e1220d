"""Perplexity and bits per byte from sums of log-probabilities; windows that give every token exactly one score."""

from __future__ import annotations

import math
from collections.abc import Iterator

from eval.protocols import Columns

LARGEST_EXPONENT = math.log(1.7e308)  # beyond it exp overflows; a perplexity there says only "no idea at all"


def perplexity_of(loss: float) -> float:
    """exp of a mean -log p in nats, infinite where a float cannot hold it: evaluation's and training's alike."""
    return math.inf if loss >= LARGEST_EXPONENT else math.exp(loss)


def perplexity(columns: Columns) -> float:
    """exp(sum of nll / sum of tokens) over all samples; nll in nats."""
    return perplexity_of(float(columns["nll"].sum() / columns["tokens"].sum()))


def perplexity_per_word(columns: Columns) -> float:
    """exp(sum of nll / sum of words): comparable between tokenizers too, and usual for word-level models."""
    return perplexity_of(float(columns["nll"].sum() / columns["words"].sum()))


def bits_per_byte(columns: Columns) -> float:
    """Bits needed per UTF-8 byte of text: comparable between tokenizers, which perplexity is not."""
    return float(columns["nll"].sum() / columns["bytes"].sum() / math.log(2))


def windows(length: int, first: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Overlapping windows (start, scored_from, end) over `length` tokens, at most `size` long.

    Every position in [first, length) lies in exactly one [scored_from, end). After the first window each scores up to
    `stride` new tokens and sees at least `size - stride` before them. Needs 1 <= first and 1 <= stride < size.
    """
    scored, end = first, min(length, size)
    if end <= first:  # the part that is only given fills the first window
        end = min(length, first + stride)
    while scored < length:
        yield max(0, end - size), scored, end
        scored, end = end, min(length, end + stride)
