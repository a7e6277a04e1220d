"""95 % intervals and tests of differences for metrics other than shares, by deterministic methods:

- Ratios of sums (mean loss and what derives from it): typical values. The ratio over random subsets of the rows, each
  row included with probability 1/2, is distributed around the true ratio like the data (Hartigan 1969,
  doi:10.1080/01621459.1969.10501057). For paired rows the test is that of random signs (answers of two models swapped
  row by row), which is exact if the models are equal, whatever the lengths of the rows.
- Functions of all numbers of the rows, such as medians, for which the jackknife fails: the bootstrap of whole rows, by
  percentiles (Efron 1979, doi:10.1214/aos/1176344552).
- Everything else: the jackknife's standard error with Student's t (Tukey 1958; Efron & Stein 1981,
  doi:10.1214/aos/1176345462), on a scale where a bounded number is nearly normal (logit, logarithm), so that intervals
  stay within the metric's limits.

Shape suffixes: n samples, b blocks of samples, s subsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr, stdtrit

from zerotune.common.metric_format import Scale

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
FEWEST = 8  # rows for typical values: with fewer, the intervals are too narrow
BLOCKS = 200  # for the jackknife: with more rows, blocks of rows are left out, as single rows would cost n * n
SUBSETS, MOST_DRAWS, FEWEST_SUBSETS = 2000, 40_000_000, 400
ALL_SUBSETS = 11  # with up to so many rows, all subsets are used
CHUNK = 64  # subsets multiplied at once, which limits memory
TAIL = 0.025


@dataclass(frozen=True)
class Interval:
    """An interval and its method."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Change:
    """A difference. p_value: two-sided, of the hypothesis "0"; below 0.05 exactly if the interval excludes 0."""

    interval: Interval
    standard_error: float
    p_value: float


def blocks(count: int) -> list[Indices]:
    """The blocks of rows that the jackknife leaves out."""
    return np.array_split(np.arange(count), min(count, BLOCKS))


def jackknife(value: float, left_out_b: Floats, scale: Scale) -> Interval | None:
    """Interval of a metric, from its values without each block; None at an end of its scale, or without spread."""
    error = _error(value, left_out_b)
    to, back, slope = _nearly_normal(scale)
    if not (error > 0 and math.isfinite(error) and scale.low < value < scale.high):
        return None
    reach = _quantile(left_out_b) * error * slope(value)
    return Interval(back(to(value) - reach), back(to(value) + reach), "jackknife, Student's t")


def jackknife_change(change: float, left_out_b: Floats, reach: float = math.inf) -> Change | None:
    """Interval and test of a difference. reach: its maximum absolute value. None without spread."""
    error = _error(change, left_out_b)
    if not (error > 0 and math.isfinite(error)):
        return None
    half = _quantile(left_out_b) * error
    p_value = float(2 * stdtr(len(left_out_b) - 1, -abs(change) / error))
    interval = Interval(max(change - half, -reach), min(change + half, reach), "paired jackknife, Student's t")
    return Change(interval, error, p_value)


def typical_values(top_n: Floats, bottom_n: Floats) -> Change:
    """Interval and test of sum(top) / sum(bottom), with positive bottoms; needs `FEWEST` rows.

    To compare two models on the same rows, pass the difference of their tops; p_value depends only on top.
    """
    in_sn = _subsets(len(top_n))
    table_nk = np.stack([top_n, bottom_n], axis=1)
    sums_sk = np.concatenate([in_sn[k : k + CHUNK].astype(np.float64) @ table_nk for k in range(0, len(in_sn), CHUNK)])
    ratios_s = np.sort(sums_sk[:, 0] / sums_sk[:, 1])
    count = len(ratios_s) + 1  # with the empty subset, which counts on both sides
    outside = math.ceil(TAIL * count) - 1  # maximum number on one side of a rejected value
    rounding = 1e-12 * float(np.abs(top_n).sum())
    below, above = (1 + int((sign * sums_sk[:, 0] <= rounding).sum()) for sign in (1, -1))
    interval = Interval(float(ratios_s[outside - 1]), float(ratios_s[-outside]), "typical values")
    rest_n = top_n - bottom_n * (top_n.sum() / bottom_n.sum())
    error = math.sqrt(float((rest_n**2).sum()) * len(top_n) / (len(top_n) - 1)) / float(bottom_n.sum())
    return Change(interval, error, min(1.0, 2 * min(below, above) / count))


@lru_cache(maxsize=2)
def _subsets(count: int) -> NDArray[np.uint8]:
    """Subsets (s x n) with 1 for included rows: for few rows all but the empty one, else random non-empty ones."""
    if count <= ALL_SUBSETS:
        return ((np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1).astype(np.uint8)
    size = min(SUBSETS, max(MOST_DRAWS // count, FEWEST_SUBSETS)) - 1
    in_sn = np.random.default_rng(0).integers(0, 2, size=(size, count), dtype=np.uint8)
    in_sn[in_sn.sum(axis=1) == 0] = 1
    return in_sn


def bootstrap(columns: Sequence[Any], of: Callable[[Floats, Floats], Floats]) -> list[Floats]:
    """[s] for each column, the function of all its numbers over the same resamples of the rows.

    columns: the numbers of each row. of: see `eval.protocols.ListMetric`. A resample without any number is left out.
    """
    counts_sn = _resamples(len(columns[0]))
    found = []
    for rows in columns:
        value_m = np.fromiter((value for row in rows for value in row), np.float64)
        row_m = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        order_m = np.argsort(value_m, kind="stable")
        parts = []
        for start in range(0, len(counts_sn), CHUNK):
            weight_sm = counts_sn[start : start + CHUNK, row_m[order_m]].astype(np.float64)
            is_empty_s = weight_sm.sum(axis=1) == 0
            weight_sm[is_empty_s] = 1.0
            parts.append(np.where(is_empty_s, np.nan, of(value_m[order_m], weight_sm)))
        found.append(np.concatenate(parts))
    kept_s = np.logical_and.reduce([np.isfinite(part_s) for part_s in found])
    return [part_s[kept_s] for part_s in found]


def percentiles(found_s: Floats) -> Interval:
    """The interval of bootstrapped values."""
    low, high = np.quantile(found_s, (TAIL, 1 - TAIL)).tolist()
    return Interval(low, high, "bootstrap of rows")


def bootstrap_change(change_s: Floats) -> Change:
    """Interval and test of a difference, from its values over resamples."""
    count = len(change_s) + 1
    below, above = (1 + int((sign * change_s <= 0).sum()) for sign in (1, -1))
    return Change(percentiles(change_s), float(change_s.std()), min(1.0, 2 * min(below, above) / count))


@lru_cache(maxsize=2)
def _resamples(count: int) -> NDArray[np.uint16]:
    """[s, n]: how often each row is drawn."""
    draw, shares = np.random.default_rng(0), np.full(count, 1 / count)
    size = min(SUBSETS, max(MOST_DRAWS // count, FEWEST_SUBSETS))
    return np.stack([draw.multinomial(count, shares).astype(np.uint16) for _ in range(size)])


def _error(value: float, left_out_b: Floats) -> float:
    return math.sqrt((len(left_out_b) - 1) / len(left_out_b)) * math.hypot(*(left_out_b - value).tolist())


def _quantile(left_out_b: Floats) -> float:
    return float(stdtrit(len(left_out_b) - 1, 1 - TAIL))


Function = Callable[[float], float]


def _nearly_normal(scale: Scale) -> tuple[Function, Function, Function]:
    """The transformation to a scale on which the number is nearly normal, its inverse, and its slope."""
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
