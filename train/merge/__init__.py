"""Merges a run's checkpoint and its base model into one self-contained Hugging Face folder.

    python -m train.merge RUN_OR_CHECKPOINT OUT [--checkpoint best|last] [--weights ...] [--quantized_base ...]

Weights are merged and written one at a time; whole models are loaded only for the comparison, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.merge.steps import merge

__all__ = ["merge"]


def __getattr__(name: str) -> Any:
    """Imports on first use: this takes seconds, and `python -m train.merge --help` must not wait for it."""
    if name != "merge":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train.merge.steps import merge

    return merge
