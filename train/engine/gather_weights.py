"""Gathers all weights of a sharded model on every rank, for generation, which would otherwise gather per token."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextlib.contextmanager
def gathered(engine: nn.Module) -> Iterator[None]:
    """Inside, the module of a DeepSpeed engine has all weights, and no DeepSpeed hooks: they would release each
    layer's weights after its use. Also for a frozen model with sharded weights.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        if not hasattr(engine, "optimizer"):  # a frozen model without hooks
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
    """The same for a model under FSDP2: its hooks would reshard each layer after its use, and expect a forward pass
    of the whole model.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    states: list[Any] = list({id(part._get_fsdp_state()): part._get_fsdp_state() for part in parts}.values())
    states[0]._lazy_init()  # the outermost module first: FSDP2 takes the first one to run for the root
    hooks: list[tuple[Any, Any]] = [
        (current, OrderedDict(current))
        for module in model.modules()
        for current in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, module._forward_hooks)
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
        for current, before in hooks:
            current.clear()
            current.update(before)
