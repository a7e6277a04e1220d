"""Bytes of weights that bitsandbytes will quantise, by their shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

FLOAT = 4
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights that share a scale, scales that share a scale (double quantisation)
NF4_TABLES = (16 + 256) * FLOAT + FLOAT  # of one matrix: values of nf4 and of its scales, and the scales' mean


def quantized_bytes(shape: Sequence[int], kind: str, double: bool) -> int:
    """Bytes of a matrix in nf4 or int8, with its scales."""
    size = math.prod(shape)
    if kind == "int8":
        return size + FLOAT * shape[0]
    scales = -(-size // NF4_BLOCK)
    if not double:
        return -(-size // 2) + FLOAT * scales + 16 * FLOAT
    return -(-size // 2) + scales + FLOAT * -(-scales // SCALE_BLOCK) + NF4_TABLES


def quantized_weights(model: Any) -> set[int]:
    """Identities of the matrices that transformers quantises: those of linear layers, without the output layer."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = tuple(get_keys_to_not_convert(model))
    linear = ((name, m) for name, m in model.named_modules() if type(m) is nn.Linear)
    return {id(m.weight) for name, m in linear if not any(part in name for part in kept)}
