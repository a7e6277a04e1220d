"""Changes weights that ZeRO-3 shards while it loads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def changeable(parameters: Sequence[Any]) -> Iterator[None]:
    """Inside, the parameters are whole. Afterwards all ranks have the changes of rank 0."""
    if not any(hasattr(parameter, "ds_shape") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield
