"""The base model's weights, one tensor at a time and under the names that they have in the model."""

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

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # safetensors' names


STORED_AS = {str(dtype).removeprefix("torch."): dtype for dtype in STORED.values()}  # config.json's


class BaseWeights(Protocol):
    """Weights by name."""

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        ...


class FileWeights:
    """Read from safetensors files when asked for; nothing is kept."""

    def __init__(self, places: dict[str, tuple[Path, str]]) -> None:
        self.places = places

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        file, key = self.places[name]
        with safe_open(file, "pt") as handle:
            tensor: Tensor = handle.get_tensor(key)
        return tensor


class ModelWeights:
    """Those of a model in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU; what a quantised layer's stands for."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        return dequantized(module, getattr(module, leaf)).detach().cpu()


def storage(folder: Path) -> torch.dtype:
    """The kind that most of a model's weights are stored in; float32 for kinds that nobody trains in.

    Of a quantised model what its config asks for beside them, bfloat16 where it says nothing.
    """
    if quantization_method(folder):
        raw = read_json(folder / "config.json")
        words = [part.get(key) for part in (raw, raw.get("text_config") or {}) for key in ("dtype", "torch_dtype")]
        return next((STORED_AS[word] for word in words if word in STORED_AS), torch.bfloat16)
    sizes: Counter[str] = Counter()
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                part = handle.get_slice(name)
                sizes[part.get_dtype()] += math.prod(part.get_shape())
    return STORED.get(sizes.most_common(1)[0][0], torch.float32)


def converts(skeleton: Any) -> bool:
    """Whether this kind of model cuts its tensors otherwise than its files do (fused experts)."""
    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(skeleton, add_legacy=False))


def dequantized(module: Any, tensor: Tensor) -> Tensor:
    """What a quantised layer's weight stands for; anything else as it is."""
    from peft.utils.integrations import dequantize_module_weight

    if type(tensor).__name__ in ("Params4bit", "Int8Params"):
        tensor = dequantize_module_weight(module).detach()
    return tensor


def from_files(folder: Path, skeleton: Any, new: Sequence[str]) -> FileWeights | None:
    """The base straight from its files; None where loading it takes more than to add or drop a prefix.

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
    """Whether the files hold two different matrices where the config asks for one; transformers then ties nothing."""
    return any(
        weights.places[target] != weights.places[source] and not torch.equal(weights.get(target), weights.get(source))
        for target, source in skeleton.all_tied_weights_keys.items()
    )
