"""Bytes that the optimizers of `train.registry.OPTIMIZERS` keep for parameters, by their shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

FLOAT = 4  # bytes; also of the count of steps
BLOCK = 256  # bitsandbytes: elements that share a scale
SMALL = 4096  # bitsandbytes: smaller parameters keep their moments in float32
TABLES = 2 * 256 * FLOAT  # bitsandbytes: what the 8 bits of each moment stand for, once for all parameters

Shapes = Sequence[Sequence[int]]


def adamw(shapes: Shapes) -> int:
    """Two moments in float32, and the count of steps."""
    return sum(2 * FLOAT * math.prod(shape) + FLOAT for shape in shapes)


def adamw_8bit(shapes: Shapes) -> int:
    """Two moments in 8 bits, with a scale for each block; in float32 for a small parameter."""
    sizes = [math.prod(shape) for shape in shapes]
    large = [2 * size + 2 * FLOAT * -(-size // BLOCK) for size in sizes if size >= SMALL]
    return sum(large) + (TABLES if large else 0) + sum(2 * FLOAT * size for size in sizes if size < SMALL)


def adafactor(shapes: Shapes) -> int:
    """Factors of the second moment of a matrix, all of it for a vector; and the count of steps."""
    return sum(FLOAT * (_factors(shape) + 1) for shape in shapes)


def _factors(shape: Sequence[int]) -> int:
    *above, width = shape
    return math.prod(above) + math.prod(above[:-1]) * width if above else width
