"""Writes model and optimizer state to a checkpoint folder and restores it, under any sharding.

Only tensors that training changes are written: trained parameters and persistent buffers. They are restored bitwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from train.checkpoint import fsdp_state, replicated_state
from train.checkpoint.manifest import verify
from zerotune.common.errors import UserError


def state_writer(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    copied: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    group: ProcessGroup | None = None,
) -> Callable[[Path], None]:
    """A function that writes this rank's part of model and optimizer into a folder. Both are collectives.

    model, optimizer: from `Accelerator.prepare`. copied: copies nested tensors; with it, the writer writes the state
    of now, and may run in another thread while training continues; without it, the state at the time of its call.
    group: process group for the writer's collectives; by default that of training.
    """
    write: Callable[[dict[str, Any], Path], None]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.checkpoint import deepspeed_state  # an optional dependency

        contents, write = deepspeed_state.contents(model), deepspeed_state.write
    elif _is_fsdp(accelerator, model):
        contents = fsdp_state.contents(accelerator.unwrap_model(model), _inner(optimizer), accelerator.scaler)
        write = partial(fsdp_state.write, group=group)
    elif accelerator.is_main_process:
        contents = replicated_state.contents(accelerator.unwrap_model(model), _inner(optimizer), accelerator.scaler)
        write = replicated_state.write
    else:
        return lambda folder: None
    kept = contents if copied is None else copied(contents)
    return lambda folder: write(kept, folder)


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Restore what `state_writer` wrote. A collective, before the first step.

    The caller has verified `folder` (as `folders.newest` does). Raises UserError naming what does not fit the model.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.checkpoint import deepspeed_state

        deepspeed_state.load(model, folder)
    elif _is_fsdp(accelerator, model):
        fsdp_state.load(accelerator.unwrap_model(model), _inner(optimizer), accelerator.scaler, folder)
    else:
        inner = accelerator.unwrap_model(model)
        replicated_state.load_model(inner, folder)
        replicated_state.load_optimizer(inner, _inner(optimizer), accelerator.scaler, folder)


def bytes_to_save(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> int:
    """Bytes of tensors that this rank would write now. The sum over all ranks is about the size of a checkpoint."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.checkpoint import deepspeed_state

        return deepspeed_state.bytes_to_save(model)
    inner = accelerator.unwrap_model(model)
    if _is_fsdp(accelerator, model):
        return fsdp_state.bytes_to_save(inner, _inner(optimizer))
    return replicated_state.bytes_to_save(inner, _inner(optimizer)) if accelerator.is_main_process else 0


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers of a finished checkpoint by name, unsharded, on the CPU.

    Needs one process only. Tied parameters appear once. Under ZeRO these are the float32 master weights. Raises
    UserError if the checkpoint does not verify.
    """
    reason = verify(folder)
    if reason:
        raise UserError(f"{folder} is not used: {reason}")
    if (folder / "deepspeed").is_dir():
        from train.checkpoint import deepspeed_state

        return deepspeed_state.trained_weights(folder)
    if (folder / fsdp_state.FOLDER).is_dir():
        return fsdp_state.trained_weights(folder)
    return replicated_state.trained_weights(folder)


def _is_fsdp(accelerator: Accelerator, model: nn.Module) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP or isinstance(model, FSDPModule)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
