"""Optimizers by name, and the learning rate as a function of the step."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from train.config import OptimConfig
from zerotune.common.errors import UserError

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def _adamw_8bit(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optim.name: adamw_8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw")
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon
    )
    return optimizer


def _adafactor(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


OPTIMIZERS: Mapping[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
}

PROMPT = "prompt_encoder"  # peft's name for the module that holds a tuned prompt

# Kinds of sharding on which an optimizer fails, or becomes another one. ZeRO hands it flat slices of the parameters,
# which is all the same to AdamW, and to 8-bit AdamW but for where its blocks of 256 begin.
UNFIT = {
    ("adafactor", "zero"): "ZeRO leaves it no rows and columns to factor, so its updates would depend on the ranks",
    ("adafactor", "fsdp"): "it fails on the shards of FSDP2",
    ("adamw_8bit", "fsdp"): "it fails on the shards of FSDP2",
}


def build(model: nn.Module, config: OptimConfig, sharding: str) -> torch.optim.Optimizer:
    """The optimizer over what is trained: matrices with weight decay; biases, norms and a tuned prompt without.

    sharding: `Runtime.kind`.
    """
    reason = UNFIT.get((config.name, sharding.partition("-")[0]))
    if reason:
        raise UserError(f"optim.name: {config.name} cannot be used with {sharding}: {reason}. Use adamw, or ddp")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError("tuning: no parameter is trained; check tuning.lora.targets")
    if sharding in ("single", "ddp") and any(p.dtype == torch.float16 for p in trained):  # others keep float32 copies
        raise UserError("model.weights: float16 weights cannot be trained, small updates would be lost; use auto")
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 a parameter's own shape is that of its shard; ds_shape is the whole.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            # Without decay the groups are all the same; a prompt stays where earlier checkpoints have it.
            is_prompt = config.weight_decay > 0 and PROMPT in name.split(".")
            (decayed if is_matrix and not is_prompt else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return OPTIMIZERS[config.name]([g for g in groups if g["params"]], config)


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of the update after `step` done ones: linear warmup, then the schedule down to final_fraction
    of the top.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total_steps - warmup, 1)
    shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))}
    return config.learning_rate * (
        config.final_fraction + (1.0 - config.final_fraction) * max(shapes[config.schedule], 0.0)
    )
