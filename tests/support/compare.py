"""Two runs that shall have the same result: curves and weights, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.fault_runs import finished
from tests.support.training_runs import metrics

# Relative, in float32. Seen here: 2e-7 for losses; 4e-7 for norms, ZeRO's among them, although DeepSpeed sums them in
# float32 and we in float64; 6e-7 of a tensor's norm for weights.
TOLERANCE = 1e-5
SMALLEST_NORM = 1e-3  # a tensor that began at 0 has hardly any


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those trained, of the last checkpoint."""
    from train.checkpoint.commit import folder_of
    from train.checkpoint.state import trained_weights

    return trained_weights(folder_of(run / "checkpoints", finished(run)[-1]))


def assert_equal(one: Path, other: Path, names: Sequence[str], absolute: float = 1e-7) -> None:
    """Of the metrics `names`, which both have at least two of, and of all trained weights."""
    for name in names:
        expected = metrics(one, name)
        assert len(expected) >= 2, name
        assert metrics(other, name) == pytest.approx(expected, rel=TOLERANCE, abs=absolute), name
    found, wanted = weights(other), weights(one)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() / tensor.norm().clamp(min=SMALLEST_NORM) <= TOLERANCE, name
