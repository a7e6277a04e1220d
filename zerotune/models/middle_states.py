"""The hidden states in the middle of a model, where a token still says what it is, not only what follows it.

Shape suffixes: b rows, t positions, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from zerotune.models.recurrence import LstmLayer, RnnLayer

_KEPT: ContextVar[list[Tensor] | None] = ContextVar("kept", default=None)


def middle_layer(base: Any) -> int | None:
    """How many layers are below the middle of a model; None of recurrent ones, whose layers reorder positions."""
    layers = _layers(base)
    return None if layers is None else (len(layers) + 1) // 2


def watch(base: Any, layer: int) -> None:
    """Let `kept` have the hidden states above so many layers."""
    layers = _layers(base)
    assert layers is not None
    layers[layer - 1].register_forward_hook(_keep)


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """Inside, the states [b, t, d] of watched layers are appended to the list. Layers computed again for the backward
    pass add nothing.
    """
    found: list[Tensor] = []
    token = _KEPT.set(found)
    try:
        yield found
    finally:
        _KEPT.reset(token)


def last_kept() -> Tensor:
    """Those of the forward pass that goes on."""
    found = _KEPT.get()
    assert found, "no layer is watched"
    return found[-1]


def _keep(_: nn.Module, __: Any, output: Any) -> None:
    found = _KEPT.get()
    if found is not None:
        found.append(output[0] if isinstance(output, tuple) else output)


def _layers(base: Any) -> nn.ModuleList | None:
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    layers = next(lists, None)
    return None if layers is None or isinstance(layers[0], RnnLayer | LstmLayer) else layers
