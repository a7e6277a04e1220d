"""The optimizers of `train.registry.OPTIMIZERS`, and the learning rate of each step."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from train.config import OptimConfig
from zerotune.common.errors import UserError

Groups = list[dict[str, Any]]


def adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def adamw_8bit(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optim.name: adamw_8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw")
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon
    )
    return optimizer


def adafactor(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


def build_optimizer(
    model: nn.Module, config: OptimConfig, sharding: str, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters: weight decay for matrices, none for biases and norms.

    sharding: `Runtime.kind`. undecayed: modules without weight decay (`TuningSpec.undecayed`).
    """
    reason = config.spec.unfit.get(sharding.partition("-")[0])
    if reason:
        raise UserError(f"optim.name: {config.name} cannot be used with {sharding}: {reason}. Use adamw, or ddp")
    groups = parameter_groups(model, config, undecayed)
    if sharding in ("single", "ddp") and any(p.dtype == torch.float16 for group in groups for p in group["params"]):
        raise UserError("model.weights: float16 weights would lose small updates in training; use auto")
    made: torch.optim.Optimizer = resolve_name(config.spec.place)(groups, config)
    return made


def parameter_groups(model: nn.Module, config: OptimConfig, undecayed: Collection[str] = ()) -> Groups:
    """The trained parameters: matrices with weight decay, and the others. Raises UserError if there are none."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Under ZeRO-3, `parameter.shape` is that of the shard.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            # Without decay the group does not matter; a prompt stays in the group of earlier checkpoints.
            is_exempt = config.weight_decay > 0 and not {*undecayed}.isdisjoint(name.split("."))
            (matrices if is_matrix and not is_exempt else others).append(parameter)
    if not matrices and not others:
        raise UserError("tuning: no parameter is trained; check tuning.lora.targets")
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of the update after `step` updates: linear warmup, then the schedule down to final_fraction."""
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total_steps - warmup, 1)
    shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))}
    return config.learning_rate * (
        config.final_fraction + (1.0 - config.final_fraction) * max(shapes[config.schedule], 0.0)
    )
