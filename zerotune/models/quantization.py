"""Weights in 4 or 8 bit by bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch


def load_options(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs for none, nf4 or int8. dtype: of the arithmetic.

    Raises ImportError without bitsandbytes.
    """
    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("bitsandbytes is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of a cast at every layer of every batch
    if quantization == "nf4":
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        bits = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": bits, "device_map": {"": device}}


def keep_layout(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew in forward passes without gradients, as it does on CPUs with
    AVX512_BF16: what is packed gives no gradients any more, is dequantised to something else, and loses digits."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
