"""Attention of many tokens to many keys in bfloat16 on a CPU, one and a half times as fast as torch's own kernel there.

Registered with transformers as "grouped_attention". That kernel multiplies in blocks too small for the bfloat16 units;
here the query heads that share a key head are one large matrix product, and keys that no query of a block sees are left
out: in a pack, the other lines. Any other call is transformers' own sdpa.

Shape suffixes: b rows, h query heads, k key heads, g query heads of a key head, t queries, c queries of one block,
s keys, d size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "grouped_attention"
SCORES_AT_ONCE = 2**21  # numbers of one block of scores: a few megabytes
LEAST_QUERIES = 16  # of a block, and of a call for which this pays
NOT_HERE = ("softcap", "position_bias", "cache", "s_aux")  # arguments that only transformers' own attention supports


def register() -> None:
    """Register "grouped_attention" with transformers; repeated calls have no effect."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def use(model: Any) -> None:
    """Use it for a transformers `model` in bfloat16 on a CPU, if that uses sdpa so far."""
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        return
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        register()
        model.set_attn_implementation(NAME)


def grouped_attention(
    module: nn.Module,
    query_bhtd: Tensor,
    key_bksd: Tensor,
    value_bksd: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Output (b, t, h, d), and no weights.

    attention_mask: (b or 1, 1, t, s), added to the scores; None for causal attention from the first key on.
    """
    queries, size = query_bhtd.shape[2:]
    if attention_mask is None:
        fits = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        fits &= queries == key_bksd.shape[2]
    else:
        fits = attention_mask.dtype == query_bhtd.dtype
    fits &= query_bhtd.dtype == torch.bfloat16 and queries >= LEAST_QUERIES and not dropout
    if not fits or any(kwargs.get(name) is not None for name in NOT_HERE):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_bhtd, key_bksd, value_bksd, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs,
        )  # fmt: skip
        return output
    query_bkgtd = (query_bhtd * (size**-0.5 if scaling is None else scaling)).unflatten(1, (key_bksd.shape[1], -1))
    block = max(SCORES_AT_ONCE // (query_bhtd[..., 0, 0].numel() * key_bksd.shape[2]), LEAST_QUERIES)
    if attention_mask is None:
        views = [_causal(start, min(start + block, queries), query_bhtd.dtype) for start in range(0, queries, block)]
    else:
        views = _views(attention_mask, block)
    outputs = [
        _block(query_bkgtd[:, :, :, view.queries], view.of(key_bksd), view.of(value_bksd), view.mask) for view in views
    ]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class View:
    """What a block of queries sees: all of the first `free` keys, and of `keys`, behind them, what the mask leaves.

    No key between the two is seen, and none after. mask: (c, s of `keys`), with more dimensions in front or not.
    """

    queries: slice
    free: int
    keys: slice
    mask: Tensor

    def of(self, key_bksd: Tensor) -> Tensor:
        """The keys, or values, that are seen."""
        if self.free == self.keys.start:
            return key_bksd[:, :, : self.keys.stop]
        return torch.cat([key_bksd[:, :, : self.free], key_bksd[:, :, self.keys]], 2)


def _causal(start: int, stop: int, dtype: torch.dtype) -> View:
    mask_cs = torch.full((stop - start, stop - start), -torch.inf, dtype=dtype).triu_(1)
    return View(slice(start, stop), start, slice(start, stop), mask_cs)


@lru_cache(maxsize=2)  # every layer of a pass is given the same mask; there are two where some see only what is near
def _views(mask_bxts: Tensor, block: int) -> list[View]:
    sees_ts = (mask_bxts > torch.finfo(mask_bxts.dtype).min / 2).amax((0, 1))
    free = int((mask_bxts == 0).amin((0, 1, 2)).int().cumprod(0).sum())
    views = []
    for start in range(0, sees_ts.shape[0], block):
        queries = slice(start, start + block)
        seen = free + sees_ts[queries, free:].amax(0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(free, free)
        views.append(View(queries, free, keys, mask_bxts[:, :, None, queries, keys]))
    return views


def _block(query_bkgcd: Tensor, key_bksd: Tensor, value_bksd: Tensor, mask_cs: Tensor) -> Tensor:
    """Output (b, h, c, d) of a block of scaled queries. mask_cs: of the last keys, those before are seen by all."""
    shape = query_bkgcd.shape[2:4]
    scores_bkgcs = (query_bkgcd.flatten(2, 3) @ key_bksd.transpose(-1, -2)).unflatten(2, shape)
    scores_bkgcs[..., key_bksd.shape[2] - mask_cs.shape[-1] :] += mask_cs
    weights_bkgcs = scores_bkgcs.softmax(-1)  # in float32 inside
    output_bkgcd: Tensor = (weights_bkgcs.flatten(2, 3) @ value_bksd).unflatten(2, shape)
    return output_bkgcd.flatten(1, 2)
