"""What is learned, by name."""

from __future__ import annotations

from collections.abc import Mapping

from train.objectives.causal_lm import CausalLM
from train.protocols import Objective

OBJECTIVES: Mapping[str, type[Objective]] = {"causal_lm": CausalLM}
