"""The hand-over: a run's checkpoint and its base model become one Hugging Face folder that needs nothing else.

    python -m train.merge RUN_OR_CHECKPOINT OUT [--checkpoint best|last] [--weights ...] [--quantized_base ...]

Weights are merged and written one at a time; whole models are in memory only to be compared, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.merge.report import MergeReport
    from train.merge.steps import merge

__all__ = ["MergeReport", "merge"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: it takes seconds, and `python -m train.merge --help` must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train.merge import report, steps

    return {"MergeReport": report.MergeReport, "merge": steps.merge}[name]
