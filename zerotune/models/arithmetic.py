"""In which precision a device multiplies fastest."""

from __future__ import annotations

from functools import cache

import torch

HALF = (torch.float16, torch.bfloat16)


@cache
def _cpu_multiplies_bf16() -> bool:
    known = torch.cpu.get_capabilities()
    return any(bool(known.get(name)) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision in which to multiply matrices of `dtype`: float32 where the CPU would only emulate a half.

    Products of halves summed in float32 lose nothing by this; the results are rounded back to `dtype` by the caller.
    """
    if device.type != "cpu" or dtype not in HALF or (dtype == torch.bfloat16 and _cpu_multiplies_bf16()):
        return dtype
    return torch.float32
