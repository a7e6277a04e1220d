"""Weights and optimizer of a run to and from a checkpoint folder, however they are spread over the ranks.

Only what training changes is written: trained parameters and persistent buffers. Loading puts back every bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from train.engine import fsdp_state, whole_state
from train.engine.manifest import verify
from train.errors import UserError


def save_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Write model and optimizer into `folder`; called by all ranks together, each writes its part.

    model, optimizer: as `Accelerator.prepare` returned them.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.engine import deepspeed_state  # an optional dependency

        deepspeed_state.save(model, folder)
    elif _is_fsdp(accelerator, model):
        fsdp_state.save(accelerator.unwrap_model(model), _inner(optimizer), accelerator.scaler, folder)
    elif accelerator.is_main_process:
        inner = accelerator.unwrap_model(model)
        whole_state.save_model(inner, folder)
        whole_state.save_optimizer(inner, _inner(optimizer), accelerator.scaler, folder)


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Put back what `save_state` wrote; called by all ranks together, before the first step.

    The caller has verified `folder` (`checkpoint.newest` does). Raises UserError naming what does not fit the model.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.engine import deepspeed_state

        deepspeed_state.load(model, folder)
    elif _is_fsdp(accelerator, model):
        fsdp_state.load(accelerator.unwrap_model(model), _inner(optimizer), accelerator.scaler, folder)
    else:
        inner = accelerator.unwrap_model(model)
        whole_state.load_model(inner, folder)
        whole_state.load_optimizer(inner, _inner(optimizer), accelerator.scaler, folder)


def bytes_to_save(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> int:
    """Bytes of tensors that this rank would write now. Summed over the ranks: a checkpoint's size, but for a little."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from train.engine import deepspeed_state

        return deepspeed_state.bytes_to_save(model)
    inner = accelerator.unwrap_model(model)
    if _is_fsdp(accelerator, model):
        return fsdp_state.bytes_to_save(inner, _inner(optimizer))
    return whole_state.bytes_to_save(inner, _inner(optimizer)) if accelerator.is_main_process else 0


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The trained parameters and persistent buffers of a finished checkpoint by name, whole and on the CPU.

    Called by one process alone. Tied parameters appear once. Under ZeRO these are the float32 master weights. Raises
    UserError where the checkpoint does not verify.
    """
    reason = verify(folder)
    if reason:
        raise UserError(f"{folder} is not used: {reason}")
    if (folder / "deepspeed").is_dir():
        from train.engine import deepspeed_state

        return deepspeed_state.trained_weights(folder)
    if (folder / fsdp_state.FOLDER).is_dir():
        return fsdp_state.trained_weights(folder)
    return whole_state.trained_weights(folder)


def _is_fsdp(accelerator: Accelerator, model: nn.Module) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP or isinstance(model, FSDPModule)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Accelerate's wrapper hides the optimizer it was given in `.optimizer`."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
