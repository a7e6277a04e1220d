"""The objectives of `train.registry.OBJECTIVES`, one file each."""

from __future__ import annotations

from pkgutil import resolve_name

from train.protocols import Objective
from train.registry import OBJECTIVES


def objective_class(name: str) -> type[Objective]:
    """The class of an objective in the registry."""
    found: type[Objective] = resolve_name(OBJECTIVES[name].place)
    return found
