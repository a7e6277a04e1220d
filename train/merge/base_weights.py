"""Reads the base model's weights, one tensor at a time, by their names in the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from zerotune.models.dequantize import quantization_method
from zerotune.models.folder import read_json, weight_files

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONFIG_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS_DTYPES.values()}  # of config.json


class BaseWeights(Protocol):
    def get(self, name: str) -> Tensor: ...


class FileWeights:
    """Reads tensors from safetensors files on demand, without a cache. places: name -> (file, key in it)."""

    def __init__(self, places: dict[str, tuple[Path, str]]) -> None:
        self.places = places

    def get(self, name: str) -> Tensor:
        file, key = self.places[name]
        with safe_open(file, "pt") as handle:
            tensor: Tensor = handle.get_tensor(key)
        return tensor


class ModelWeights:
    """The weights of a model in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get(self, name: str) -> Tensor:
        """The tensor, dequantised if it is quantised, on the CPU."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        return dequantized(module, getattr(module, leaf)).detach().cpu()


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of a model's stored weights; float32 if it is none of SAFETENSORS_DTYPES.

    For a quantised model, the dtype in its config, or bfloat16 if there is none.
    """
    if quantization_method(folder):
        raw = read_json(folder / "config.json")
        names = [part.get(key) for part in (raw, raw.get("text_config") or {}) for key in ("dtype", "torch_dtype")]
        return next((CONFIG_DTYPES[name] for name in names if name in CONFIG_DTYPES), torch.bfloat16)
    sizes: Counter[str] = Counter()
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                part = handle.get_slice(name)
                sizes[part.get_dtype()] += math.prod(part.get_shape())
    return SAFETENSORS_DTYPES.get(sizes.most_common(1)[0][0], torch.float32)


def converts(skeleton: Any) -> bool:
    """Whether this kind of model divides its tensors differently from its files (fused experts)."""
    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(skeleton, add_legacy=False))


def dequantized(module: Any, tensor: Tensor) -> Tensor:
    """A quantised layer's weight, dequantised; any other tensor unchanged."""
    from peft.utils.integrations import dequantize_module_weight

    if type(tensor).__name__ in ("Params4bit", "Int8Params"):
        tensor = dequantize_module_weight(module).detach()
    return tensor


def from_files(folder: Path, skeleton: Any, new: Sequence[str]) -> FileWeights | None:
    """The base model's weights, read from its files; None if loading them takes more than adding or dropping a prefix.

    new: modules that the base need not have.
    """
    if quantization_method(folder):
        return None
    prefix = skeleton.base_model_prefix
    wanted = set(skeleton.state_dict())
    places: dict[str, tuple[Path, str]] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            for key in handle.keys():  # noqa: SIM118  (not a dict)
                forms = (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}."))
                name = next((form for form in forms if form in wanted), None)
                if name is not None:
                    places[name] = (file, key)
    weights = FileWeights(places)
    for target, source in skeleton.all_tied_weights_keys.items():
        if target in places and source not in places:
            places[source] = places[target]
        elif source in places and target not in places:
            places[target] = places[source]
    lacking = [name for name in wanted - set(places) if not any(f".{part}." in f".{name}" for part in new)]
    return None if lacking else weights


def unties(weights: FileWeights, skeleton: Any) -> bool:
    """Whether the files have two different matrices although the config ties them; transformers then ties nothing."""
    return any(
        weights.places[target] != weights.places[source] and not torch.equal(weights.get(target), weights.get(source))
        for target, source in skeleton.all_tied_weights_keys.items()
    )
