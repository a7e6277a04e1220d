"""Attention that stays inside each document of a packed row, on any device and without FlashAttention.

Registered with transformers as "document_attention" (decision 0002). A call that carries `cu_seq_lens_q` computes each
document by itself; any other call (generation with a cache, padded batches) is transformers' own sdpa with its mask.

Shape suffixes: h query heads, k key/value heads, g query heads of a key head, t positions of the pack, n positions of
one document, d head dimension.
"""

from __future__ import annotations

import inspect
import math
import re
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from zerotune.common.errors import UserError
from zerotune.models.precision import HALF

NAME = "document_attention"
# Arguments of some models that attention by document would silently ignore.
UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "cache")
# All layers of a micro-batch see the same boundary tensor: it is read once, which on a GPU is one synchronisation.
_LENGTHS = WeakTensorKeyDictionary()


def register() -> None:
    """Register "document_attention" with transformers; repeated calls have no effect."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, document_mask)


def implementation(
    requested: str, packed: bool, device: torch.device | str, dtype: torch.dtype | None = None
) -> str | None:
    """The name for `from_pretrained(attn_implementation=...)`; None lets transformers choose, since some families have
    no sdpa.

    Args:
        requested: auto, sdpa, flash_attention_2 or flash_attention_3.
        packed: Whether micro-batches hold several documents in a row.
        dtype: Arithmetic of the forward pass where known; FlashAttention has no float32.
    """
    usable = (
        torch.device(device).type == "cuda"
        and (dtype is None or dtype in HALF)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    installed = {"flash_attention_3": is_flash_attn_3_available, "flash_attention_2": is_flash_attn_2_available}
    if requested in installed:
        if not (usable and installed[requested]()):
            raise UserError(
                f"model.attention: {requested} needs its package, a CUDA GPU (compute capability 8.0 or newer) and "
                "bf16 or fp16; choose auto or sdpa"
            )
        return requested
    if requested == "auto" and usable:
        for name, available in installed.items():
            if available():
                return name
    if packed:
        return NAME
    return None if requested == "auto" else "sdpa"


def can_pack(model: nn.Module) -> bool:
    """Whether documents sharing a row of this transformers model cannot see each other.

    False for attention outside transformers' interface, with sinks (gpt-oss) or with position biases, for layers that
    carry a state along the row (recurrent, linear, convolutional; but for those of zerotune.models.recurrent) and for
    attention in chunks counted from the start of the row.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    kinds = set(getattr(text, "layer_types", None) or ())
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and (not getattr(model, "_is_stateful", False) or getattr(model, "keeps_rows_apart", False))
        and getattr(text, "attention_chunk_size", None) is None
        and kinds <= {"full_attention", "sliding_attention"}
        and not any(_passes_more(cast(Any, type(module))) for module in model.modules())
    )


@cache
def _passes_more(kind: Any) -> bool:
    """Whether an attention layer passes arguments that `document_attention` rejects (sinks, position biases)."""
    if not kind.__name__.endswith("Attention"):
        return False
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False
    return re.search(r"\b(s_aux|position_bias)=", source) is not None


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """None for a packed row, whose [t, t] mask would be large and unused; sdpa's mask for every other call."""
    packed = not allow_is_causal_skip and not use_vmap and attention_mask is None
    if packed and batch_size == 1 and q_length == kv_length and isinstance(q_offset, int) and q_offset == 0:
        return None
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        **kwargs,
    )
    return mask


def document_attention(
    module: nn.Module,
    query_1htd: Tensor,
    key_1ktd: Tensor,
    value_1ktd: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    position_ids: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of each document to itself; output [1, t, h, d] as transformers wants it, and no weights.

    `cu_seq_lens_q` [documents + 1] holds the boundaries and takes precedence over a mask. Where it is missing,
    restarting `position_ids` give them.
    """
    starts = cu_seq_lens_q
    if starts is None and attention_mask is None and position_ids is not None:
        starts = row_starts(position_ids, query_1htd.shape[2])
    if starts is None or key_1ktd.shape[2] != query_1htd.shape[2]:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_1htd, key_1ktd, value_1ktd, attention_mask, dropout=dropout, scaling=scaling,
            is_causal=is_causal, softcap=softcap, **kwargs,
        )  # fmt: skip
        return output
    if query_1htd.shape[0] != 1:
        raise ValueError(f"packed documents share one row, but the batch has {query_1htd.shape[0]}")
    if given := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
        raise ValueError(f"{NAME} cannot honour {', '.join(given)}: use batch.layout: padded for this model")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = sliding_window or None
    kind = query_1htd.device.type
    # Under autocast rotary embeddings make float32 queries and keys beside values of its dtype.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query_1htd.dtype
    # On a CPU the half-precision kernel is slower than float32's (its backward several times) and less exact.
    inner_dtype = torch.float32 if kind == "cpu" and dtype in HALF else dtype
    with torch.autocast(kind, enabled=False):
        q, k, v = (x.to(inner_dtype) for x in (query_1htd, key_1ktd, value_1ktd))
        if q.is_cuda and causal and not dropout and softcap is None:
            capability = torch.cuda.get_device_capability(q.device)
            if kernel_fits(capability, inner_dtype, q.shape[-1], v.shape[-1]):
                return _variable_length(q, k, v, starts, kwargs, scaling, window), None
        lengths = document_lengths(starts)
        documents = zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
        outputs = [_one_document(*document, causal, window, scaling, dropout, softcap) for document in documents]
        return torch.cat(outputs, 2).to(dtype).transpose(1, 2).contiguous(), None


def kernel_fits(capability: tuple[int, int], dtype: torch.dtype, depth: int, value_depth: int) -> bool:
    """Whether torch's FlashAttention takes heads of this width on a GPU of this compute capability, backward too."""
    widest = 256 if capability in ((8, 0), (9, 0)) else 192
    return capability >= (8, 0) and dtype in HALF and depth == value_depth and depth % 8 == 0 and depth <= widest


def document_lengths(starts: Tensor) -> list[int]:
    """Length of each document, from boundaries [documents + 1]."""
    lengths: list[int] | None = _LENGTHS.get(starts)
    if lengths is None:
        lengths = torch.diff(starts).tolist()
        _LENGTHS[starts] = lengths
    return lengths


def row_starts(position_ids_1t: Tensor, positions: int) -> Tensor | None:
    """Boundaries of a row whose positions restart; None where they do not."""
    if position_ids_1t.shape != (1, positions):
        return None
    restarts = torch.diff(position_ids_1t[0]).ne(1).nonzero()[:, 0] + 1
    if not len(restarts):
        return None
    ends = restarts.new_tensor([0, positions])
    return torch.cat([ends[:1], restarts, ends[1:]]).to(torch.int32)


def _one_document(
    query_1hnd: Tensor,
    key_1knd: Tensor,
    value_1knd: Tensor,
    causal: bool,
    window: int | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    length = query_1hnd.shape[2]
    if softcap is None and (window is None or window >= length):
        return F.scaled_dot_product_attention(
            query_1hnd, key_1knd, value_1knd, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=True
        )
    visible_nn = _visible(length, causal, window, query_1hnd.device)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query_1hnd, key_1knd, value_1knd, attn_mask=visible_nn, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    groups = query_1hnd.shape[1] // key_1knd.shape[1]
    scores_1kgnn = query_1hnd.unflatten(1, (-1, groups)) @ key_1knd.unsqueeze(2).transpose(-1, -2)
    scores_1kgnn = scores_1kgnn * (1 / math.sqrt(query_1hnd.shape[-1]) if scaling is None else scaling)
    scores_1kgnn = softcap * torch.tanh(scores_1kgnn / softcap)
    weights_1kgnn = scores_1kgnn.masked_fill(~visible_nn, -math.inf).softmax(-1, torch.float32).to(value_1knd.dtype)
    return (F.dropout(weights_1kgnn, dropout) @ value_1knd.unsqueeze(2)).flatten(1, 2)


def _visible(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """[n, n], true where a row's position attends to a column's: the last `window` positions, including itself."""
    visible_nn = torch.ones(length, length, dtype=torch.bool, device=device)
    if causal:
        visible_nn = visible_nn.tril_()
    return visible_nn if window is None else visible_nn.triu_(1 - window)


def _variable_length(
    query_1htd: Tensor,
    key_1ktd: Tensor,
    value_1ktd: Tensor,
    starts: Tensor,
    kwargs: dict[str, Any],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """torch's own FlashAttention over all documents at once, where `kernel_fits`."""
    from torch.nn.attention.varlen import varlen_attn

    longest = kwargs.get("max_length_q") or max(document_lengths(starts))
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query_1htd, key_1ktd, value_1ktd))
    boundaries = starts.to(torch.int32)
    look_back = (-1 if window is None else window - 1, 0)
    output_thd: Any = varlen_attn(
        q, k, v, boundaries, boundaries, longest, longest, scale=scaling, window_size=look_back, enable_gqa=True
    )
    return output_thd[None]  # type: ignore[no-any-return]
