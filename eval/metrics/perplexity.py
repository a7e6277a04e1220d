"""Perplexity and bits per byte from sums of log-probabilities; windows that score every token exactly once."""

from __future__ import annotations

import math
from collections.abc import Iterator

from eval.protocols import Columns, RatioMetric
from zerotune.common import metric_format

LARGEST_EXPONENT = math.log(1.7e308)  # larger exponents overflow


def perplexity_of(loss: float) -> float:
    """exp of a mean -log p in nats; infinity on overflow. Used by evaluation and training."""
    return math.inf if loss >= LARGEST_EXPONENT else math.exp(loss)


def bits_of(loss: float) -> float:
    """Convert a mean -log p from nats to bits."""
    return loss / math.log(2)


def other_unknown(base: Columns, other: Columns) -> str:
    """Why no loss of two models can be compared: one of them reads more of a row as <unk>."""
    if _differ("unknown", base, other):
        return (
            "not comparable: the models read different words as <unk>, or numbers as values, which is easier to "
            "predict than the word"
        )
    return ""


def other_tokens(base: Columns, other: Columns) -> str:
    """Why a loss per token of two models cannot be compared: they do not score the same tokens."""
    if _differ("tokens", base, other):
        differ = "the models read these rows as different tokens (tokenizer or chat template)"
        return f"not comparable: {differ}; compare bits_per_byte or perplexity_per_word"
    return other_unknown(base, other)


def _differ(name: str, base: Columns, other: Columns) -> bool:
    return name in base and bool((base[name] != other[name]).any())


PERPLEXITY = RatioMetric("perplexity", False, "nll", ("tokens",), metric_format.PERPLEXITY, perplexity_of, other_tokens)
# Comparable across tokenizers, unlike perplexity; perplexity per word is usual for word-level models.
PERPLEXITY_PER_WORD = RatioMetric(
    "perplexity_per_word", False, "nll", ("words",), metric_format.PERPLEXITY, perplexity_of, other_unknown
)
BITS_PER_BYTE = RatioMetric("bits_per_byte", False, "nll", ("bytes",), metric_format.POSITIVE, bits_of, other_unknown)


def windows(length: int, first: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Overlapping windows (start, scored_from, end) over `length` tokens, at most `size` long.

    Every position in [first, length) lies in exactly one [scored_from, end). After the first window each scores up to
    `stride` new tokens and sees at least `size - stride` before them. Needs 1 <= first and 1 <= stride < size.
    """
    scored, end = first, min(length, size)
    if end <= first:  # the unscored part fills the first window
        end = min(length, first + stride)
    while scored < length:
        yield max(0, end - size), scored, end
        scored, end = end, min(length, end + stride)
