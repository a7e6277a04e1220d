"""Computes the merged model's tensors, one at a time: the base with the update of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from train.merge.base_weights import BaseWeights
from train.merge.source import Source
from train.tuning import make_tuning
from train.tuning.lora import ADAPTER
from zerotune.common.errors import UserError
from zerotune.models.number_rows import matrices, with_row

PREFIX = "base_model.model."  # PEFT's prefix of the model's own module names


class Merger(Protocol):
    """Merges the weights of one kind of tuning; made from (source, skeleton, base weights or None).

    used: names of the trained weights that were merged.
    """

    used: set[str]

    def is_tied(self, target: str, origin: str) -> bool:
        """Whether two tensors that the base ties are still one matrix, written once."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor of the merged model, in float32."""
        ...


def skeleton_of(source: Source) -> Any:
    """The merged model on the meta device, without weights."""
    with torch.device("meta"):
        return source.model_class._from_config(source.model_config, dtype=torch.float32)


def merger_for(source: Source, skeleton: Any, base: BaseWeights | None) -> Merger:
    """The merger of the source's tuning. base: None only if all weights were trained."""
    made: Merger = resolve_name(source.tuning.spec.merger)(source, skeleton, base)
    return made


def merged(source: Source, skeleton: Any, merger: Merger) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight of the merged model in float32; tied matrices once.

    Raises UserError if a trained weight does not belong to the model.
    """
    tied = skeleton.all_tied_weights_keys
    for name in skeleton.state_dict():
        if name not in tied or not merger.is_tied(name, tied[name]):
            yield name, merger.tensor(name)
    unused = sorted(set(source.trained) - merger.used)
    if unused:
        model = type(skeleton).__name__
        raise UserError(f"{source.checkpoint}: {unused[0]} ({len(unused)} such) does not belong to {model}")


class Full:
    """Full tuning: all weights are the trained ones."""

    def __init__(self, source: Source, skeleton: Any, base: BaseWeights | None) -> None:
        self.source, self.used = source, set[str]()

    def is_tied(self, target: str, origin: str) -> bool:
        return target not in self.source.trained

    def tensor(self, name: str) -> Tensor:
        if name not in self.source.trained:
            raise UserError(f"{self.source.checkpoint}: {name} is missing")
        self.used.add(name)
        return self.source.trained[name].float()


class Adapter:
    """LoRA: each adapted module is filled, merged by PEFT's own code in float32, read, and emptied again."""

    def __init__(self, source: Source, skeleton: Any, base: BaseWeights | None) -> None:
        from peft.tuners.lora import LoraLayer
        from peft.utils import ModulesToSaveWrapper

        assert base is not None
        self.source, self.base, self.used = source, base, set[str]()
        self.layers: dict[str, tuple[str, Any]] = {}
        self.trained_as: dict[str, str] = {}
        self.number_rows = _number_rows(source, skeleton)
        tuned = _tuned(source, skeleton_of(source))
        for path, module in tuned.base_model.model.named_modules(remove_duplicate=False):
            if isinstance(module, ModulesToSaveWrapper):
                for leaf in module.original_module.state_dict():
                    self.trained_as[f"{path}.{leaf}"] = f"{PREFIX}{path}.modules_to_save.{ADAPTER}.{leaf}"
            elif isinstance(module, LoraLayer):
                owner = path.replace(".base_layer", "")  # wrappers of fused experts are nested
                self.layers[f"{owner}.{_leaf(module)}"] = (path, module)
                self.trained_as[f"{owner}.bias"] = f"{PREFIX}{path}.base_layer.bias"

    def is_tied(self, target: str, origin: str) -> bool:
        """Whether neither has its own adapter."""
        return target not in self.layers and origin not in self.layers

    def tensor(self, name: str) -> Tensor:
        if name in self.layers:
            return self._merge(name, *self.layers[name])
        trained = self.trained_as.get(name, f"{PREFIX}{name}")
        if trained in self.source.trained:
            self.used.add(trained)
            return self.source.trained[trained].float()
        return self._base(name)

    def _base(self, name: str) -> Tensor:
        weight = self.base.get(name).float()
        if name not in self.number_rows:
            return weight
        return with_row(weight, self.source.number_id, self.number_rows[name])

    @torch.no_grad()
    def _merge(self, name: str, path: str, layer: Any) -> Tensor:
        start = f"{PREFIX}{path}."
        keys = [key for key in self.source.trained if key.startswith(f"{start}lora_")]
        if not keys:
            raise UserError(f"{self.source.checkpoint}: no adapter for {path}")
        self.used |= set(keys)
        own = {key.removeprefix(start): self.source.trained[key].float() for key in keys}
        inside = layer.get_base_layer()
        inner_path = next(path for path, module in layer.named_modules() if module is inside)
        empty = layer.state_dict()
        weight = self._base(name)
        layer.load_state_dict({**own, f"{inner_path}.{_leaf(layer)}": weight}, strict=False, assign=True)
        try:
            layer.merge(safe_merge=True, adapter_names=[ADAPTER])
        except ValueError as error:
            raise UserError(f"{self.source.checkpoint}: merging {name} gives values that are not finite") from error
        result: Tensor = getattr(inside, _leaf(layer)).detach()
        layer.load_state_dict(empty, assign=True)
        layer.merged_adapters.clear()
        return result


def _leaf(layer: Any) -> str:
    """The name of the parameter that a LoRA layer adapts."""
    return str(getattr(layer, "parameter_name", "weight"))


def _number_rows(source: Source, skeleton: Any) -> dict[str, Tensor]:
    """The row of `<NUM>` in each frozen matrix, by the matrix's name."""
    if source.number_rows is None:
        return {}
    rows = list(zip(matrices(skeleton), source.number_rows, strict=True))
    named = skeleton.named_parameters(remove_duplicate=False)
    return {name: row_d for name, parameter in named for matrix, row_d in rows if parameter is matrix}


def _tuned(source: Source, skeleton: Any) -> Any:
    """A model on the meta device with adapters, made by the code of the training."""
    if source.trains_new_rows:
        skeleton.resized_from_tokens = source.base_rows
    plain = dataclasses.replace(source.tuning, quantization="none")
    tuning = make_tuning(plain, source.config.run.seed, model=source.model, task=source.task)
    tuned: nn.Module = tuning.apply(skeleton)
    return tuned
