"""Sizes in bytes: read from an option, and written for people."""

from __future__ import annotations

import re

from zerotune.common.errors import UserError

GB = 10**9
CUDA_CONTEXT = 800_000_000  # with cuBLAS and NCCL buffers; an estimate, not measured
UNITS = {"": GB, "g": GB, "gb": GB, "gib": 2**30, "mb": 10**6, "mib": 2**20, "tb": 10**12}


def bytes_of(text: str, option: str) -> int:
    """Bytes of 80GB, 79.6GiB, 24 (GB). Raises UserError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-zA-Z]*)", text.strip())
    if not found or found[2].lower() not in UNITS or not float(found[1]):
        raise UserError(f"{option} {text}: must be a size, such as 80GB or 79.6GiB")
    return round(float(found[1]) * UNITS[found[2].lower()])


def gigabytes(size: int) -> str:
    """Bytes in GB (10^9), with the digits that matter."""
    value = size / GB
    return f"{value:,.2f} GB" if value < 100 else f"{value:,.0f} GB"
