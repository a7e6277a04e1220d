"""Writes model and optimizer state to a checkpoint folder and restores it, under any sharding.

Only tensors that training changes are written: trained parameters and persistent buffers. They are restored bitwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
    kind, parts = _sharding(accelerator, model, optimizer)
    if kind is replicated_state and not accelerator.is_main_process:
        return lambda folder: None
    write = partial(fsdp_state.write, group=group) if kind is fsdp_state else kind.write
    contents = kind.contents(*parts)
    return partial(write, contents if copied is None else copied(contents))


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Restore what `state_writer` wrote. A collective, before the first step.

    The caller has verified `folder` (as `folders.newest` does). Raises UserError naming what does not fit the model.
    """
    kind, parts = _sharding(accelerator, model, optimizer)
    kind.load(*parts, folder)


def bytes_to_save(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> int:
    """Bytes of tensors that this rank would write now. The sum over all ranks is about the size of a checkpoint."""
    kind, parts = _sharding(accelerator, model, optimizer)
    if kind is replicated_state and not accelerator.is_main_process:
        return 0
    return int(kind.bytes_to_save(*parts[:2]))


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


def _sharding(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> tuple[Any, tuple[Any, ...]]:
    """(module of this kind of sharding, what its functions take: DeepSpeed's engine, or model, optimizer, scaler)."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.checkpoint import deepspeed_state  # an optional dependency

        return deepspeed_state, (model,)
    is_fsdp = accelerator.distributed_type == DistributedType.FSDP or isinstance(model, FSDPModule)
    inner = getattr(optimizer, "optimizer", optimizer)  # inside Accelerate's wrapper
    kind = fsdp_state if is_fsdp else replicated_state
    return kind, (accelerator.unwrap_model(model), inner, accelerator.scaler)
