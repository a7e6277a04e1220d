"""What is learned, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from train.config import Config
from train.objectives.causal_lm import CausalLM
from train.protocols import Objective, Ranks, Tuning

OBJECTIVES: Mapping[str, Callable[[Config, Tuning, Ranks], Objective]] = {"causal_lm": CausalLM}
