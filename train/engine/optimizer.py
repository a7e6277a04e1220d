"""Optimizers by name, and the learning rate of each step."""

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

PROMPT = "prompt_encoder"  # PEFT's module of a tuned prompt

# Kinds of sharding with which an optimizer fails or computes something else. ZeRO gives it flat slices of the
# parameters: AdamW is unaffected, and 8-bit AdamW differs only in where its blocks of 256 begin.
UNFIT = {
    ("adafactor", "zero"): "ZeRO flattens the matrices that it factors, so its updates would depend on the ranks",
    ("adafactor", "fsdp"): "it fails on the shards of FSDP2",
    ("adamw_8bit", "fsdp"): "it fails on the shards of FSDP2",
}


def build_optimizer(model: nn.Module, config: OptimConfig, sharding: str) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters: weight decay for matrices, none for biases, norms and a tuned prompt.

    sharding: `Runtime.kind`.
    """
    reason = UNFIT.get((config.name, sharding.partition("-")[0]))
    if reason:
        raise UserError(f"optim.name: {config.name} cannot be used with {sharding}: {reason}. Use adamw, or ddp")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError("tuning: no parameter is trained; check tuning.lora.targets")
    if sharding in ("single", "ddp") and any(p.dtype == torch.float16 for p in trained):  # others keep float32 copies
        raise UserError("model.weights: float16 weights would lose small updates in training; use auto")
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Under ZeRO-3, `parameter.shape` is that of the shard.
            is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            # Without decay the group does not matter; a prompt stays in the group of earlier checkpoints.
            is_prompt = config.weight_decay > 0 and PROMPT in name.split(".")
            (decayed if is_matrix and not is_prompt else undecayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return OPTIMIZERS[config.name]([g for g in groups if g["params"]], config)


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
