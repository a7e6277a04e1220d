"""Intervals and tests for shares, where resampling fails: 0 of 40 correct does not prove 0 %."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from eval.metrics.intervals import Interval

Outcomes = NDArray[np.float64]  # 0.0 or 1.0


def wilson(outcomes: Outcomes, confidence: float = 0.95) -> Interval:
    """Score interval of one share (Wilson 1927, doi:10.2307/2276774)."""
    n, z = len(outcomes), NormalDist().inv_cdf((1 + confidence) / 2)
    share = float(outcomes.mean())
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), "Wilson")


def newcombe(before: Outcomes, after: Outcomes, confidence: float = 0.95) -> Interval:
    """Interval of `after - before` on the same samples (Newcombe 1998, Stat. Med. 17:2635, method 10)."""
    first, second = wilson(after, confidence), wilson(before, confidence)
    p1, p2 = float(after.mean()), float(before.mean())
    r = _correlation(before, after)
    down = (p1 - first.low) ** 2 - 2 * r * (p1 - first.low) * (second.high - p2) + (second.high - p2) ** 2
    up = (first.high - p1) ** 2 - 2 * r * (first.high - p1) * (p2 - second.low) + (p2 - second.low) ** 2
    return Interval(p1 - p2 - math.sqrt(max(down, 0.0)), p1 - p2 + math.sqrt(max(up, 0.0)), "Newcombe")


def _correlation(before: Outcomes, after: Outcomes) -> float:
    """Phi of the 2 x 2 table, with Newcombe's continuity correction; 0 if a margin is empty."""
    n = len(before)
    both, neither = float((before * after).sum()), float(((1 - before) * (1 - after)).sum())
    lost, won = float((before * (1 - after)).sum()), float(((1 - before) * after).sum())
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - lost * won
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)


def mcnemar(before: Outcomes, after: Outcomes) -> float:
    """Two-sided mid-p value of "both are correct equally often" (McNemar 1947, doi:10.1007/BF02295996).

    The mid-p value counts the observed outcome half: the exact test is conservative at 5 %, while this one comes close
    and hardly exceeds it (Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91).
    """
    won, lost = int((after > before).sum()), int((after < before).sum())
    tail, ways = 0, 1  # ways: binomial coefficient, updated incrementally since factorials take a minute
    for k in range(min(won, lost) + 1):
        tail += 2 * ways
        last, ways = ways, ways * (won + lost - k) // (k + 1)
    return min(1.0, (tail - last) / (1 << (won + lost)))


def paired_error(before: Outcomes, after: Outcomes) -> float:
    """Standard error of `after - before`, with half a sample added on either side, so that it is never 0.

    Agresti & Min 2005, doi:10.1002/sim.1781.
    """
    won, lost, n = float((after > before).sum()) + 0.5, float((after < before).sum()) + 0.5, len(before) + 2
    return math.sqrt(won + lost - (won - lost) ** 2 / n) / n
