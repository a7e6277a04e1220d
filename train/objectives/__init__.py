"""What is learned: one file for each objective of `train.registry.OBJECTIVES`."""

from __future__ import annotations

from train.protocols import Objective
from train.registry import OBJECTIVES, imported


def objective_class(name: str) -> type[Objective]:
    """The class of the objective of this name."""
    found: type[Objective] = imported(OBJECTIVES[name].place)
    return found
