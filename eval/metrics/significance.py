"""Detectable differences, and the correction for multiple comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist


def detectable(standard_error: float, significance: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `significance` detects with probability `power`."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - significance / 2) + normal.inv_cdf(power)) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons (Holm 1979): all below 0.05 hold together with 95 % confidence."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = largest
    return adjusted
