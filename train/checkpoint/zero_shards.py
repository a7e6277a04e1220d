"""Reads ZeRO shards of any stage and any number of ranks by parameter name.

ZeRO keeps float32 weights and optimizer state in flat slices. Stages 1 and 2 concatenate the parameters of an
optimizer group and give each rank a slice; stage 3 gives each rank a part of each parameter, and concatenates these
parts. Either way a slice consists of segments of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    BUFFER_NAMES,
    FP32_FLAT_GROUPS,
    OPTIMIZER_STATE_DICT,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
    ZERO_STAGE,
)
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_model_state_files, get_optim_files
from torch import Tensor

from train.checkpoint.unpickle import restricted
from zerotune.common.errors import UserError

ALLOWED_CLASSES = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)
WEIGHTS = ""  # means the float32 weights where a key of the optimizer's state is expected


class Segment(NamedTuple):
    """`numel` elements of a flattened parameter, from index `first` on; in slice number `slice` of the rank they begin
    at index `start`.
    """

    slice: int
    start: int
    first: int
    numel: int


Layout = Mapping[str, Segment]  # the segments of one rank, by parameter name


def stage3_layout(groups: Iterable[Mapping[str, torch.Size]], rank: int, ranks: int) -> Layout:
    """The segments of a rank under stage 3. groups: full shapes of the parameters in each slice, in order."""
    layout: dict[str, Segment] = {}
    for number, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            part = -(-shape.numel() // ranks)
            first = min(rank * part, shape.numel())
            layout[name] = Segment(number, start, first, min(part, shape.numel() - first))
            start += part
    return layout


def _stage12_layouts(ranks: Iterable[Sequence[Mapping[str, fragment_address]]]) -> list[Layout]:
    """The segments of each rank under stages 1 and 2. ranks: per rank and slice, the positions of its parameters."""
    before: dict[str, int] = {}
    layouts: list[Layout] = []
    for groups in ranks:
        layout: dict[str, Segment] = {}
        for number, addresses in enumerate(groups):
            for name, address in addresses.items():
                layout[name] = Segment(number, address.start, before.get(name, 0), address.numel)
                before[name] = before.get(name, 0) + address.numel
        layouts.append(layout)
    return layouts


class Shards:
    """A DeepSpeed checkpoint. Its files are memory-mapped: only tensors in use are read."""

    def __init__(self, folder: Path) -> None:
        """folder: verified. Raises UserError if a file contains other than ALLOWED_CLASSES."""
        self.folder = folder
        with restricted(folder, *ALLOWED_CLASSES):
            self.model = _mapped(get_model_state_files(folder)[0])
            self._ranks = [_mapped(file)[OPTIMIZER_STATE_DICT] for file in get_optim_files(folder)]
        self.first = self._ranks[0]
        self.is_stage_3 = self.first[ZERO_STAGE] == ZeroStageEnum.weights
        if self.is_stage_3:
            count = len(self._ranks)
            self._layouts = [stage3_layout(self.model[PARAM_SHAPES], rank, count) for rank in range(count)]
        else:
            self._layouts = _stage12_layouts(rank[PARAM_SLICE_MAPPINGS] for rank in self._ranks)

    @property
    def names(self) -> set[str]:
        """Names of the trained parameters."""
        return {name for layout in self._layouts for name in layout}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The persistent buffers."""
        module = self.model["module"]
        return {name: module[name].clone() for name in self.model[BUFFER_NAMES] if name in module}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups with their options."""
        found: list[dict[str, Any]] = self._optimizer(self.first)["param_groups"]
        return found

    def parameter(self, name: str, shape: Sequence[int]) -> Tensor:
        """One unsharded parameter, in float32."""
        weight = torch.empty(torch.Size(shape).numel(), dtype=torch.float32)
        self.fill(weight, name, WEIGHTS, 0)
        return weight.view(*shape)

    def fill(self, target: Tensor, name: str, key: str, first: int) -> None:
        """Fill `target` with a parameter's elements from `first` on (key: WEIGHTS), or with their optimizer state."""
        missing, last = target.numel(), first + target.numel()
        for rank, layout in zip(self._ranks, self._layouts, strict=True):
            part = layout.get(name, Segment(0, 0, 0, 0))
            begin, end = max(first, part.first), min(last, part.first + part.numel)
            if begin < end:
                shift = part.start - part.first
                target[begin - first : end - first] = self._slice(rank, part.slice, key)[begin + shift : end + shift]
                missing -= end - begin
        if missing:
            raise UserError(f"{self.folder}: {missing} of {target.numel()} elements of {name} are in no shard")

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """The optimizer's state of the first slice with elements of a parameter."""
        rank, part = next((r, lay[name]) for r, lay in zip(self._ranks, self._layouts, strict=True) if name in lay)
        state: dict[str, Any] = self._optimizer(rank)["state"].get(part.slice, {})
        return state

    def require_elementwise_state(self) -> None:
        """Raise UserError if the optimizer's state has other entries than plain numbers per element."""
        states = [state for rank in self._ranks for state in self._optimizer(rank)["state"].values()]
        if not all(_is_plain(value) for state in states for value in state.values()):
            raise UserError(
                f"{self.folder}: the state of an 8-bit optimizer cannot be resharded; resume with {len(self._ranks)} "
                "processes, which wrote it, and the same ZeRO stage"
            )

    def _optimizer(self, rank: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = rank[OPTIMIZER_STATE_DICT if self.is_stage_3 else BASE_OPTIMIZER_STATE]
        return state

    def _slice(self, rank: dict[str, Any], number: int, key: str) -> Tensor:
        if key == WEIGHTS:
            weights: Tensor = rank[FP32_FLAT_GROUPS if self.is_stage_3 else SINGLE_PARTITION_OF_FP32_GROUPS][number]
            return weights.detach()  # saved as parameters
        entry: Tensor = self._optimizer(rank)["state"][number][key]
        return entry


def _is_plain(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, int | float)


def _mapped(file: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return content
