"""Precisions: their names in recipes and options, which one a device gets, and in which one it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
HALF = (torch.float16, torch.bfloat16)
DTYPES: Mapping[str, torch.dtype] = {
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16"), torch.float16),
    **dict.fromkeys(("fp32", "float32"), torch.float32),
}


@cache
def _cpu_multiplies_bf16() -> bool:
    known = torch.cpu.get_capabilities()
    return any(bool(known.get(name)) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))


def choose_precision(requested: str, on_gpu: bool) -> Precision:
    """bf16, fp16 or fp32. auto is bf16 where the hardware multiplies it at full speed, else fp32 (fp16 on a GPU)."""
    if requested in ("bf16", "fp16", "fp32"):
        return requested  # type: ignore[return-value]
    if on_gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision in which to multiply matrices of `dtype`: float32 where the CPU would only emulate a half.

    Products of halves summed in float32 lose nothing by this; the results are rounded back to `dtype` by the caller.
    """
    if device.type != "cpu" or dtype not in HALF or (dtype == torch.bfloat16 and _cpu_multiplies_bf16()):
        return dtype
    return torch.float32


def exact(x: Tensor) -> Tensor:
    """At least in float32. Sharded training in half precision casts all parameters of a model, also those that it
    keeps in float32 alone.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
