"""All weights of a sharded model on every rank for a while, for work that would else gather them token by token."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


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


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """The same for a model under FSDP2, whose hooks would shard each layer's weights again after its use, and count on
    the forward pass of the whole model.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    states: list[Any] = list({id(part._get_fsdp_state()): part._get_fsdp_state() for part in parts}.values())
    states[0]._lazy_init()  # the outermost part first: whatever runs first would be taken for the root
    hooks: list[tuple[Any, Any]] = [
        (kept, OrderedDict(kept))
        for module in model.modules()
        for kept in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, module._forward_hooks)
    ]
    for state in states:
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
    try:
        for part in parts:
            part.unshard()
        yield
    finally:
        for part in parts:
            part.reshard()
        for kept, before in hooks:
            kept.clear()
            kept.update(before)
