"""Model FLOPs utilisation (MFU).

MFU = tokens/s * model_flops_per_token / (sum of the peaks of all ranks), as in PaLM (arXiv:2204.02311, appendix B).
Recomputed activations, padding and dequantisation do not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

_MEASURE_SECONDS = 0.25


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one rank's device in dense matrix products, and the source of the number."""

    flops: float
    source: str


# Dense FLOP/s with 16-bit inputs and 32-bit accumulation, from NVIDIA's data sheets (without sparsity).
# The first entry whose words all occur in the device's name applies, so longer names come first.
_PEAKS_16_BIT: tuple[tuple[str, float], ...] = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("V100", 125e12),
    ("T4", 65e12),
)
_NO_BF16 = ("V100", "T4")
_OTHER_CHIPS = {"LAPTOP", "D", "MIG", "MAX", "SUPER"}  # named like a card in the table, but slower


def peak_flops(device: torch.device, dtype: torch.dtype, peak_tflops: float | None = None) -> Peak:
    """Peak of this rank's device in `dtype`: configured, else known by its name, else measured in half a second.

    Ranks on one CPU share its cores: call this on all ranks at the same time, and add up the results.
    """
    if peak_tflops is not None:
        return Peak(peak_tflops * 1e12, "watch.peak_tflops")
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        known = known_peak(name, dtype)
        if known is not None:
            return Peak(known, f"data sheet of {name}")
    return Peak(_measure(device, dtype), "measured matrix product")


def known_peak(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of a GPU by its name; None if unknown."""
    words = set(name.upper().replace("-", " ").split())
    for known, flops in _PEAKS_16_BIT:
        if words.issuperset(known.upper().split()) and not words & _OTHER_CHIPS:
            return None if dtype == torch.bfloat16 and known in _NO_BF16 else flops
    return None


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of a square matrix product."""
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + _MEASURE_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def model_flops_per_token(model: nn.Module, attention_length: float, head_share: float = 1.0) -> float:
    """FLOPs per token without padding, forward and backward.

    A weight that multiplies each token needs 2 FLOPs in the forward pass, 2 for the gradient of its input and, if it
    is trained, 2 for its own gradient: 6 N, or 4 N for frozen weights (LoRA, prompt tuning). Attention adds 12 for
    each layer, head, head dimension and attended position. Embedding look-ups cost nothing; the output head costs the
    same, tied or not. Sizes come from the modules, since their weights may be sharded or packed. Weights of mixtures
    of experts (several experts in one parameter) are not counted.

    Args:
        attention_length: Attended positions per token, on average: (n + 1) / 2 in a causal document of n tokens.
            (PaLM's formula uses n, twice what a causal model needs.)
        head_share: Share of the tokens for which the output head is computed.
    """
    head = _modules_of_output_head(model)
    total = 0.0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if "original_module" in name.split(".") or weight is None:  # PEFT's unused copy of a fully trained module
            continue
        if isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
        elif type(module).__name__ == "Conv1D":  # transformers' transposed linear layer of GPT-2
            size = module.nx * module.nf
        else:
            continue
        total += size * (6 if weight.requires_grad else 4) * (head_share if module in head else 1.0)
    return total + 12.0 * _attention_width(model) * attention_length


def _modules_of_output_head(model: nn.Module) -> set[nn.Module]:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return set(head.modules()) if isinstance(head, nn.Module) else set()


def _attention_width(model: nn.Module) -> int:
    """Layers x heads x head dimension; 0 for a model without attention."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "num_attention_heads"):
        return 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * config.num_attention_heads * head_dim)
