"""Checkpoints whose weights are stored quantised: read as the ordinary weights they stand for, or refused.

What a folder's config.json says of its weights (`quantization_config`) decides. torch is imported only to load.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerotune.common.errors import UserError
from zerotune.common.files import json_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITSANDBYTES = "bitsandbytes"
# quant_method of what is dequantised while it is loaded; every other one is refused.
# tests/unit/models/test_dequantize.py holds each against a dequantisation of its own.
DEQUANTIZED = ("fp8", "mxfp8", "mxfp4", BITSANDBYTES)
KEYS = ("quantization_config", "compression_config")  # the second: older names of compressed-tensors
# What quantised weights are made of. Where nothing reads these, the weights beside them are taken for what they are not
PACKED = re.compile(
    r"(_scale|_scales|_scale_inv|\.scale|\.scales|_blocks|qweight|qzeros|g_idx|weight_packed|SCB|absmax|quant_map)$"
)

SURELY_PACKED = re.compile(r"(_scale_inv|\.absmax|\.quant_map|\.SCB|\.qweight|\.weight_packed|_proj_blocks)$")


def stored_quantization(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a model's config.json (as plain values) says of how its weights are quantised; None for ordinary weights.

    It may stand in the config of a part (text_config).
    """
    for part in (raw, *(value for value in raw.values() if isinstance(value, Mapping))):
        for key in KEYS:
            if part.get(key):
                return dict(part[key])
    return None


def quantization_method(folder: Path) -> str | None:
    """How the weights of a folder are quantised (fp8, mxfp4, bitsandbytes, ...); None for ordinary weights.

    Raises UserError, with the way out, where they cannot be read as ordinary weights.
    """
    stored = stored_quantization(json_object(folder / "config.json"))  # whoever reads it next says what is wrong
    if stored is None:
        return None
    method = BITSANDBYTES if stored.get("load_in_4bit") or stored.get("load_in_8bit") else stored.get("quant_method")
    if method not in DEQUANTIZED:
        raise UserError(
            f"{folder / 'config.json'}: its weights are quantised by {method or 'an unnamed method'} "
            f"(quantization_config), which is not read here; {', '.join(DEQUANTIZED)} are. Use the 16-bit model that "
            "it was made from (its model card names it), or write a dequantised copy with the library that made it"
        )
    if method == BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{folder}: its weights are quantised by bitsandbytes: pip install bitsandbytes")
    return str(method)


def refuse_twice(folder: Path, key: str, wanted: str) -> None:
    """Raise UserError where weights that are to be quantised to `wanted` are stored quantised already."""
    method = quantization_method(folder)
    if method is not None:
        raise UserError(
            f"{key}: {wanted} cannot be put on {folder}, whose weights are quantised already ({method}); set {key} to "
            "none, which dequantises them, or use the 16-bit model that it was made from"
        )


def require_no_packed(folder: Path, unread: Iterable[str]) -> None:
    """Raise UserError for parts of quantised weights that nothing reads.

    unread: names in the folder's files that its model has no place for.
    """
    suspects = [name for name in unread if PACKED.search(name)]
    names = _headers(folder) if suspects else {}
    packed = sorted(name for name in suspects if SURELY_PACKED.search(name) or _stands_by_weights(name, names))
    if packed:
        raise UserError(
            f"{folder}: {packed[0]} ({len(packed)} such) belongs to quantised weights, and its config.json has no "
            "quantization_config that says how to read it; fetch the config.json that belongs to the weights"
        )


def _stands_by_weights(name: str, names: Container[str]) -> bool:
    """Whether what the name says is a scale of something there is: a model may learn scales too (`logit_scale`)."""
    stem = PACKED.sub("", name)
    return any(other in names for other in (stem, f"{stem}.weight", f"{stem}_blocks"))


def require_plain_numbers(folder: Path) -> None:
    """Raise UserError for weights in 8 bits or fewer where nothing says how they are quantised."""
    kinds = {name: kind for name, (kind, _) in _headers(folder).items()}
    odd = [name for name, kind in kinds.items() if kind.startswith(("F8", "F4", "F6")) or SURELY_PACKED.search(name)]
    if odd:
        raise UserError(
            f"{folder}: {odd[0]} is stored as {kinds[odd[0]]} ({len(odd)} such), and its config.json has no "
            "quantization_config that says what these numbers stand for; fetch the config.json that belongs to them"
        )


def load_dequantized(
    kind: Any, folder: Path, config: Any, dtype: torch.dtype, new: Sequence[str] = (), **options: Any
) -> tuple[Any, dict[str, Any]]:
    """(model, what transformers tells of its loading): an ordinary model in `dtype`, on the CPU, not sharded.

    Args:
        kind: A model class of transformers or one of its Auto classes.
        folder: Whose `quantization_method` is one of DEQUANTIZED.
        config: The model's config; it may have lost the folder's quantization_config.
        dtype: Storage of the weights.
        new: Modules that the files need not hold.
        options: Further keyword arguments of `from_pretrained`.

    Raises:
        UserError: The files lack a scale, or hold one that fits no weight.
    """
    raw = json_object(folder / "config.json")
    stored = stored_quantization(raw)
    assert stored is not None
    is_bitsandbytes = quantization_method(folder) == BITSANDBYTES
    if is_bitsandbytes:
        options["device_map"] = {"": "cpu"}
        stored["llm_int8_skip_modules"] = [*_plain_modules(folder), *new]
    else:
        stored["dequantize"] = True
        _require_scales(folder)
    config.quantization_config = stored
    try:
        with _whole_blocks(stored.get("weight_block_size")):
            quantized, found = kind.from_pretrained(folder, config=config, dtype=dtype, **options)
    except (ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder}: its quantised weights cannot be read ({reason})") from error
    return _ordinary(quantized, dtype), found


def _ordinary(quantized: Any, dtype: torch.dtype) -> Any:
    """The same weights in a model that knows nothing of quantisation: such a one may be trained and written."""
    from transformers.initialization import no_init_weights

    weights = quantized.state_dict(keep_vars=True)
    for name, module in quantized.named_modules(remove_duplicate=False):
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            weights[f"{name}.weight"] = _of_bitsandbytes(module).to(dtype)
    config = copy.deepcopy(quantized.config)
    for part in (config, config.get_text_config()):
        for key in KEYS:
            if hasattr(part, key):
                delattr(part, key)
    with no_init_weights():  # all of them are replaced
        model = type(quantized)._from_config(config, dtype=dtype)
    own = model.state_dict()
    model.load_state_dict({name: weights[name].detach() for name in own}, assign=True)
    if all(weights[target] is weights[source] for target, source in model.all_tied_weights_keys.items()):
        model.tie_weights()
    if hasattr(quantized, "generation_config"):
        model.generation_config = quantized.generation_config
    return model.requires_grad_(True).eval()


def _of_bitsandbytes(layer: Any) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    if type(layer).__name__ == "Linear8bitLt":
        result: Tensor = dequantize_bnb_weight(layer.weight, layer.state)
        return result
    # In one row: bitsandbytes' CPU kernel starts a new block with every row, which is not how weights were packed whose
    # rows are no multiple of the block.
    weight = copy.copy(layer.weight)
    weight.quant_state = copy.copy(layer.weight.quant_state)
    shape = weight.quant_state.shape
    weight.quant_state.shape = type(shape)((1, shape.numel()))
    result = dequantize_bnb_weight(weight)
    return result.view(shape)


def _headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """(kind, shape) of every tensor of a folder's files, by name."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                part = handle.get_slice(name)
                found[name] = (str(part.get_dtype()), list(part.get_shape()))
    return found


def _plain_modules(folder: Path) -> list[str]:
    """Modules whose weight is stored as it is: what bitsandbytes must not take for packed. Also as a part is named."""
    names = [
        name.removesuffix(".weight")
        for name, (kind, shape) in _headers(folder).items()
        if name.endswith(".weight") and kind not in ("U8", "I8") and len(shape) == 2
    ]
    return [*names, *(name.partition(".")[2] for name in names if "." in name)]


def _require_scales(folder: Path) -> None:
    """Raise UserError for FP8 or FP4 numbers without scales: read as they are, they would be another model's."""
    headers = _headers(folder)
    for name, (kind, _) in headers.items():
        stem = name.removesuffix(".weight")
        scales = (f"{name}_scale_inv", f"{stem}.scale", f"{stem}.qscale_weight", f"{name}_scale")
        if kind.startswith(("F8_E4M3", "F8_E5M2")):
            missing = not any(scale in headers for scale in scales)
        elif name.endswith("_blocks"):
            missing = name.removesuffix("_blocks") + "_scales" not in headers
        else:
            continue
        if missing:
            raise UserError(f"{folder}: {name} is quantised ({kind}), and its scales are missing; fetch the model anew")


@contextlib.contextmanager
def _whole_blocks(block: Sequence[int] | None) -> Iterator[None]:
    """Inside, blocks of FP8 weights have the size that the config says, the last of a row or column may be smaller.

    transformers divides a matrix by its grid of scales, which is wrong where the size is no multiple of the block
    (48 rows in blocks of 32 are 32 and 16, not 24 and 24), and says nothing where it goes even.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    original = Fp8Dequantize._dequantize_one

    def dequantize(self: Any, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        grid = tuple(scales.shape[-2:]) if scales.ndim > 1 else ()
        sizes = tuple(quantized.shape[-2:])
        if block is not None and grid and grid == tuple(-(-size // b) for size, b in zip(sizes, block, strict=True)):
            pads = [-size % b for size, b in zip(sizes, block, strict=True)]
            if any(pads):
                import torch

                padded = torch.nn.functional.pad(quantized.float(), (0, pads[1], 0, pads[0]))
                whole: Tensor = original(self, padded, scales, output_dtype)
                return whole[..., : sizes[0], : sizes[1]].contiguous()
        result: Tensor = original(self, quantized, scales, output_dtype)
        return result

    Fp8Dequantize._dequantize_one = dequantize
    try:
        yield
    finally:
        Fp8Dequantize._dequantize_one = original
