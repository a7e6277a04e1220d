"""95 % intervals, and tests of a change, of numbers that are no plain shares. Two ways, both deterministic:

- Ratios of sums (the mean loss, and what is made of it): typical values. The ratio over every subset of the rows, each
  row in or out by a fair coin, spreads around the true one as the data do (Hartigan 1969,
  doi:10.1080/01621459.1969.10501057). For paired rows the test is that of random signs (two models' answers swapped row
  by row), exact where the models are alike, whatever the lengths of the rows.
- Everything else: the jackknife's standard error with Student's t (Tukey 1958; Efron & Stein 1981,
  doi:10.1214/aos/1176345462), on the scale where a bounded number is nearly normal (logit, logarithm), so that no
  interval leaves the metric's limits.

Shape suffixes: n samples, b blocks of samples, s subsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr, stdtrit

from zerotune.common.scale import Scale

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
FEWEST = 8  # rows for typical values: with fewer they do not hold what they say
BLOCKS = 200  # rows left out at once beyond as many: single ones would cost n * n
SUBSETS, MOST_DRAWS, FEWEST_SUBSETS = 2000, 40_000_000, 400
ALL_SUBSETS = 11  # up to so many rows all subsets are taken
CHUNK = 64  # subsets that are multiplied at once: bounds the memory
TAIL = 0.025


@dataclass(frozen=True)
class Interval:
    """Both ends, and how they were found."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Change:
    """What is known of a difference. p_value: two-sided, of "it is 0"; below 0.05 exactly where the interval leaves
    out 0.
    """

    interval: Interval
    standard_error: float
    p_value: float


def blocks(count: int) -> list[Indices]:
    """The rows that are left out together, as the jackknife wants its values."""
    return np.array_split(np.arange(count), min(count, BLOCKS))


def jackknife(value: float, left_out_b: Floats, scale: Scale) -> Interval | None:
    """Of a metric's value, from its values without each block. None at the end of its scale, and without spread."""
    error = _error(value, left_out_b)
    to, back, slope = _nearly_normal(scale)
    if not (error > 0 and math.isfinite(error) and scale.low < value < scale.high):
        return None
    reach = _quantile(left_out_b) * error * slope(value)
    return Interval(back(to(value) - reach), back(to(value) + reach), "jackknife, Student's t")


def jackknife_change(change: float, left_out_b: Floats, reach: float = math.inf) -> Change | None:
    """Of a difference of two values. reach: how far from 0 it can be. None without spread."""
    error = _error(change, left_out_b)
    if not (error > 0 and math.isfinite(error)):
        return None
    half = _quantile(left_out_b) * error
    p_value = float(2 * stdtr(len(left_out_b) - 1, -abs(change) / error))
    interval = Interval(max(change - half, -reach), min(change + half, reach), "paired jackknife, Student's t")
    return Change(interval, error, p_value)


def typical_values(top_n: Floats, bottom_n: Floats) -> Change:
    """Of sum(top) / sum(bottom), every bottom being positive; needs `FEWEST` rows.

    For the difference of two models on the same rows, top is the difference of theirs; p_value depends on top alone.
    """
    in_sn = _subsets(len(top_n))
    table_nk = np.stack([top_n, bottom_n], axis=1)
    sums_sk = np.concatenate([in_sn[k : k + CHUNK].astype(np.float64) @ table_nk for k in range(0, len(in_sn), CHUNK)])
    ratios_s = np.sort(sums_sk[:, 0] / sums_sk[:, 1])
    count = len(ratios_s) + 1  # and the empty subset, which is on both sides of everything
    outside = math.ceil(TAIL * count) - 1  # the most on one side of a value that is still rejected
    rounding = 1e-12 * float(np.abs(top_n).sum())
    below, above = (1 + int((sign * sums_sk[:, 0] <= rounding).sum()) for sign in (1, -1))
    interval = Interval(float(ratios_s[outside - 1]), float(ratios_s[-outside]), "typical values")
    rest_n = top_n - bottom_n * (top_n.sum() / bottom_n.sum())
    error = math.sqrt(float((rest_n**2).sum()) * len(top_n) / (len(top_n) - 1)) / float(bottom_n.sum())
    return Change(interval, error, min(1.0, 2 * min(below, above) / count))


@lru_cache(maxsize=2)
def _subsets(count: int) -> NDArray[np.uint8]:
    """s x n, 1 where the row is in: all but the empty one for few rows, else random ones, none empty."""
    if count <= ALL_SUBSETS:
        return ((np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1).astype(np.uint8)
    size = min(SUBSETS, max(MOST_DRAWS // count, FEWEST_SUBSETS)) - 1
    in_sn = np.random.default_rng(0).integers(0, 2, size=(size, count), dtype=np.uint8)
    in_sn[in_sn.sum(axis=1) == 0] = 1
    return in_sn


def _error(value: float, left_out_b: Floats) -> float:
    return math.sqrt((len(left_out_b) - 1) / len(left_out_b)) * math.hypot(*(left_out_b - value).tolist())


def _quantile(left_out_b: Floats) -> float:
    return float(stdtrit(len(left_out_b) - 1, 1 - TAIL))


Function = Callable[[float], float]


def _nearly_normal(scale: Scale) -> tuple[Function, Function, Function]:
    """To the scale on which the number is nearly normal, back, and the slope of the way there."""
    low, high = scale.low, scale.high
    if math.isinf(low):
        return lambda x: x, lambda y: y, lambda x: 1.0
    if math.isinf(high):
        return lambda x: math.log(x - low), lambda y: low + math.exp(min(y, 700.0)), lambda x: 1 / (x - low)
    width = high - low
    return (
        lambda x: float(logit((x - low) / width)),
        lambda y: low + width * float(expit(y)),
        lambda x: width / ((x - low) * (high - x)),
    )
