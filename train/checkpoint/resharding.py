"""Loads ZeRO shards with another number of ranks or another stage.

DeepSpeed's own loader gets the state that this rank would have saved under the present number of ranks and stage.
Nothing is computed, so weights and optimizer state are restored bitwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    FP32_FLAT_GROUPS,
    LOSS_SCALER,
    OPTIMIZER_STATE_DICT,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch import Tensor

from train.checkpoint.zero_shards import WEIGHTS, Layout, Segment, Shards, stage3_layout

SCALE = (LOSS_SCALER, "dynamic_loss_scale", "overflow")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def slices(engine: DeepSpeedEngine) -> list[Tensor]:
    """This rank's flat slices of the float32 weights."""
    optimizer = engine.optimizer
    found = optimizer.fp32_partitioned_groups_flat if _is_stage_3(engine) else optimizer.single_partition_of_fp32_groups
    return list(found)


def _is_stage_3(engine: DeepSpeedEngine) -> bool:
    return bool(engine.zero_optimization_stage() == ZeroStageEnum.weights)


def _layout(engine: DeepSpeedEngine) -> Layout:
    """The segments that this rank holds now."""
    if _is_stage_3(engine):
        return stage3_layout(engine._get_zero_param_shapes(), engine.global_rank, engine.dp_world_size)
    places = {name: p._hp_mapping for name, p in engine.module.named_parameters() if getattr(p, "_hp_mapping", None)}
    return {
        name: Segment(number, address.start, places[name].lp_fragment_address.start, address.numel)
        for number, addresses in enumerate(engine.optimizer._param_slice_mappings)
        for name, address in addresses.items()
    }


def load(engine: DeepSpeedEngine, folder: Path) -> None:
    """Restore a checkpoint of any number of ranks and any stage. A collective, before the first step.

    folder: DeepSpeed's, verified. Raises UserError if the optimizer's state cannot be resharded.
    """
    shards, optimizer = Shards(folder), engine.optimizer
    shards.require_elementwise_state()
    is_stage_3 = _is_stage_3(engine)
    state = _state_dict(shards, optimizer.state_dict(), _layout(engine), slices(engine), is_stage_3)
    if is_stage_3:
        optimizer.checkpoint_event_prologue()
    # Each rank takes its own entry of the list.
    optimizer.load_state_dict([state] * engine.dp_world_size, load_from_fp32_weights=True)
    if is_stage_3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    buffers = dict(engine.module.named_buffers())
    for name, buffer in shards.buffers.items():
        buffers[name].copy_(buffer)
    for counter in COUNTERS:
        setattr(engine, counter, shards.model[counter])


def _state_dict(
    shards: Shards, present: dict[str, Any], layout: Layout, present_slices: Sequence[Tensor], is_stage_3: bool
) -> dict[str, Any]:
    """present: the state that DeepSpeed's optimizer would save now; entries that depend on ranks and stage are kept."""
    weights: list[Tensor] = []
    states: dict[int, dict[str, Any]] = {}
    for number, flat in enumerate(present_slices):
        held = {name: part for name, part in layout.items() if part.slice == number}
        weights.append(_cut(shards, held, WEIGHTS, flat))
        saved = shards.optimizer_state(next(iter(held))) if held else {}  # a slice may be padding only
        states[number] = {key: _entry(shards, held, key, value, flat) for key, value in saved.items()}
    inner = OPTIMIZER_STATE_DICT if is_stage_3 else BASE_OPTIMIZER_STATE
    groups = [
        {**old, "params": new["params"]} for new, old in zip(present[inner]["param_groups"], shards.groups, strict=True)
    ]
    return {
        **present,
        **{key: shards.first[key] for key in SCALE},
        FP32_FLAT_GROUPS if is_stage_3 else SINGLE_PARTITION_OF_FP32_GROUPS: weights,
        inner: {"state": states, "param_groups": groups},
    }


def _entry(shards: Shards, held: Layout, key: str, value: Any, flat: Tensor) -> Any:
    """One entry of the optimizer's state: a value per element, or a number such as the step."""
    if not isinstance(value, Tensor):
        return value
    return _cut(shards, held, key, flat) if value.ndim else value.clone()


def _cut(shards: Shards, held: Layout, key: str, like: Tensor) -> Tensor:
    """A flat slice; padding is zero."""
    cut = torch.zeros(like.shape, dtype=like.dtype)
    for name, part in held.items():
        shards.fill(cut[part.start : part.start + part.numel], name, key, part.first)
    return cut
