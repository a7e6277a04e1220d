"""Confidence intervals by resampling samples: bias-corrected and accelerated (BCa; Efron 1987, doi:10.2307/2289144).

Two models are compared on the same samples: one resample picks the same samples for both, so that what is hard for both
does not blur their difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
JACKKNIFE_BLOCKS = 200  # the acceleration needs no more; leaving out single samples would cost n * n
MOST_DRAWS, FEWEST_RESAMPLES = 40_000_000, 400  # many samples need fewer resamples, and each costs more


@dataclass(frozen=True)
class Interval:
    """Both ends, and how they were found."""

    low: float
    high: float
    method: str


def bootstrap(
    statistic: Callable[[Indices], float], count: int, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Interval of `statistic`, which takes indices into `count` samples. None for fewer than two samples."""
    if count < 2:
        return None
    draw = np.random.default_rng(seed)
    resamples = min(resamples, max(MOST_DRAWS // count, FEWEST_RESAMPLES))
    resampled = np.array([statistic(draw.integers(count, size=count)) for _ in range(resamples)])
    low, high = _bca_levels(statistic, count, resampled, confidence)
    return Interval(float(np.quantile(resampled, low)), float(np.quantile(resampled, high)), "bootstrap (BCa)")


def _bca_levels(
    statistic: Callable[[Indices], float], count: int, resampled: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """The quantiles of the resampled values that are the interval's ends."""
    tail, normal = (1 - confidence) / 2, NormalDist()
    everything = np.arange(count)
    estimate = statistic(everything)
    below = float(np.mean(resampled < estimate) + np.mean(resampled == estimate) / 2)
    if not 0 < below < 1:  # all resamples on one side: nothing to correct by
        return tail, 1 - tail
    blocks = np.array_split(everything, min(count, JACKKNIFE_BLOCKS))
    left_out = np.array([statistic(np.delete(everything, block)) for block in blocks])
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum()) ** 1.5
    acceleration = float((deviation**3).sum()) / (6 * spread) if spread > 0 else 0.0
    bias = normal.inv_cdf(below)

    def level(p: float) -> float:
        shifted = bias + normal.inv_cdf(p)
        return normal.cdf(bias + shifted / (1 - acceleration * shifted))

    return level(tail), level(1 - tail)
