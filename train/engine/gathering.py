"""All weights of a ZeRO-3 model on every rank for a while, for work that would else gather them token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def gathered(engine: nn.Module) -> Iterator[None]:
    """Inside, the engine's module computes with whole weights and without DeepSpeed's hooks, which would let go of
    each layer's weights after its use. Also for a model of which only the weights are sharded.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        if not hasattr(engine, "optimizer"):  # a frozen copy, which has no hooks
            yield
            return
        optimizer: Any = engine.optimizer
        offload = optimizer.parameter_offload
        for parameter in engine.parameters():
            active = getattr(parameter, "ds_active_sub_modules", None)
            if active:
                active.clear()
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)
