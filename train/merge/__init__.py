"""The hand-over: a run's checkpoint and its base model become one Hugging Face folder that needs nothing else.

    python -m train.merge RUN_OR_CHECKPOINT OUT [--checkpoint best|last] [--weights ...] [--quantized_base ...]

Weights are merged and written one at a time; whole models are in memory only to be compared, one after the other.
"""

from __future__ import annotations

from train.merge.report import MergeReport
from train.merge.steps import merge

__all__ = ["MergeReport", "merge"]
