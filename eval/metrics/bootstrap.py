"""Confidence intervals and tests by resampling samples. Two models are compared on the same samples: one resample picks
the same samples for both, so that what is hard for both does not blur their difference.

Functions of column sums (means, perplexity) get the studentised interval (Efron & Tibshirani 1993, section 12.5), which
stays true where few long documents weigh most. Everything else gets the bias-corrected and accelerated one (BCa; Efron
1987, doi:10.2307/2289144).

Shape suffixes: n samples, r resamples, k columns, b blocks of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
NORMAL = NormalDist()
# With fewer samples not even their whole range holds the true median 95 times of 100 (1 - 2 ** (1 - n) times), and of
# no difference a bootstrap of five makes one 15 times of 100.
FEWEST = 6
JACKKNIFE_BLOCKS = 200  # the acceleration needs no more; leaving out single samples would cost n * n
MOST_DRAWS, FEWEST_RESAMPLES = 40_000_000, 400  # many samples need fewer resamples, and each costs more
CHUNK = 64  # resamples that are multiplied at once: bounds the memory
STEP = 1e-5  # of a numerical derivative, relative


@dataclass(frozen=True)
class Interval:
    """Both ends, and how they were found."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Bootstrap:
    """What resampling says of a number. p_value: two-sided, of "the true value is 0"; below 1 - confidence exactly
    where the interval leaves out 0.
    """

    interval: Interval
    standard_error: float
    p_value: float


@dataclass(frozen=True)
class _Resampled:
    """The statistic of all samples, of each resample, and of all samples but one block."""

    value: float
    values_r: Floats
    left_out_b: Floats


def bootstrap(
    statistic: Callable[[Indices], float], count: int, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Bootstrap | None:
    """BCa for any `statistic`, which takes indices into `count` samples. None for fewer than `FEWEST` samples, and
    where a resample has no finite value.
    """
    if count < FEWEST:
        return None
    everything = np.arange(count)
    values_r = np.array([statistic(np.repeat(everything, w)) for w in _weights(count, resamples, seed)])
    left_out_b = np.array([statistic(np.delete(everything, block)) for block in _blocks(count)])
    return _bca(_Resampled(statistic(everything), values_r, left_out_b), confidence)


def bootstrap_sums(
    statistic: Callable[[Floats], Floats],
    table_nk: Floats,
    limits: tuple[float, float] = (-np.inf, np.inf),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Bootstrap | None:
    """Studentised, for a `statistic` of nothing but the sums of the table's columns (a column of ones gives the count).

    It takes many resamples' sums at once (r x k) and gives a value for each. limits: no true value lies outside. BCa
    where some resample has no spread; None as for `bootstrap`.
    """
    count, columns = table_nk.shape
    if count < FEWEST:
        return None
    moments_nk = (table_nk[:, :, None] * table_nk[:, None, :]).reshape(count, columns * columns)
    both_nk = np.concatenate([table_nk, moments_nk], axis=1)
    weights_rn = _weights(count, resamples, seed)
    chunks = [weights_rn[r : r + CHUNK].astype(np.float64) @ both_nk for r in range(0, len(weights_rn), CHUNK)]
    both_rk = np.concatenate([both_nk.sum(axis=0, keepdims=True), *chunks])  # first all samples, then the resamples
    sums_rk = both_rk[:, :columns]
    left_out_bk = sums_rk[0] - np.array([table_nk[block].sum(axis=0) for block in _blocks(count)])
    values_r = statistic(sums_rk)
    resampled = _Resampled(float(values_r[0]), values_r[1:], statistic(left_out_bk))
    errors_r = _errors(statistic, sums_rk, values_r, both_rk[:, columns:].reshape(-1, columns, columns), count)
    if not np.isfinite(errors_r).all() or not (errors_r > STEP * errors_r[0]).all():
        return _bca(resampled, confidence)
    return _studentised(resampled, float(errors_r[0]), errors_r[1:], limits, confidence)


@lru_cache(maxsize=2)
def _weights(count: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """How often each resample holds each sample: resamples x count."""
    draw = np.random.default_rng(seed)
    resamples = min(resamples, max(MOST_DRAWS // count, FEWEST_RESAMPLES))
    weights_rn = np.empty((resamples, count), dtype=np.uint8)
    for weights_n in weights_rn:
        weights_n[:] = np.bincount(draw.integers(count, size=count, dtype=np.int32), minlength=count)
    return weights_rn


def _blocks(count: int) -> list[Indices]:
    return np.array_split(np.arange(count), min(count, JACKKNIFE_BLOCKS))


def _errors(
    statistic: Callable[[Floats], Floats], sums_rk: Floats, values_r: Floats, moments_rkk: Floats, count: int
) -> Floats:
    """Standard errors, by the statistic's derivatives and the columns' covariance."""
    slopes = []
    with np.errstate(invalid="ignore"):  # of values that are not finite, which the caller looks at
        for column in range(sums_rk.shape[1]):
            step_r = STEP * np.where(sums_rk[:, column] == 0, 1.0, np.abs(sums_rk[:, column]))
            shifted_rk = sums_rk.copy()
            shifted_rk[:, column] += step_r
            slopes.append((statistic(shifted_rk) - values_r) / step_r)
        slopes_rk = np.stack(slopes, axis=1)
        covariance_rkk = moments_rkk - sums_rk[:, :, None] * sums_rk[:, None, :] / count
        variances_r: Floats = np.einsum("ri,rij,rj->r", slopes_rk, covariance_rkk, slopes_rk)
        return np.sqrt(np.maximum(variances_r, 0.0))


def _studentised(
    resampled: _Resampled, error: float, errors_r: Floats, limits: tuple[float, float], confidence: float
) -> Bootstrap:
    tail, value = (1 - confidence) / 2, resampled.value
    t_r = (resampled.values_r - value) / errors_r
    low, high = (value - float(np.quantile(t_r, level)) * error for level in (1 - tail, tail))
    above = (float(np.sum(t_r >= value / error)) + 1) / (len(t_r) + 1)
    below = (float(np.sum(t_r <= value / error)) + 1) / (len(t_r) + 1)
    p_value = _agreeing(2 * min(above, below), low, high, confidence)
    return Bootstrap(Interval(max(low, limits[0]), min(high, limits[1]), "studentised bootstrap"), error, p_value)


def _bca(resampled: _Resampled, confidence: float) -> Bootstrap | None:
    value, values_r = resampled.value, resampled.values_r
    if not np.isfinite(values_r).all():
        return None
    tail = (1 - confidence) / 2
    bias, acceleration = _bias(values_r, value), _acceleration(resampled.left_out_b)

    def level(p: float) -> float:
        shifted = bias + NORMAL.inv_cdf(p)
        return NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))

    low, high = (float(np.quantile(values_r, level(p))) for p in (tail, 1 - tail))
    below = float(np.mean(values_r < 0) + np.mean(values_r == 0) / 2)
    below = min(max(below, 1 / (len(values_r) + 1)), len(values_r) / (len(values_r) + 1))
    share = NORMAL.inv_cdf(below) - bias
    at_zero = NORMAL.cdf(share / (1 + acceleration * share) - bias)  # the level whose end would be 0
    p_value = _agreeing(2 * min(at_zero, 1 - at_zero), low, high, confidence)
    return Bootstrap(Interval(low, high, "bootstrap (BCa)"), float(values_r.std(ddof=1)), p_value)


def _agreeing(p_value: float, low: float, high: float, confidence: float) -> float:
    """The p-value, on the same side of the threshold as the interval: between two resamples they may differ."""
    if low <= 0 <= high:
        return min(max(p_value, 1 - confidence), 1.0)
    return min(p_value, float(np.nextafter(1 - confidence, 0.0)))


def _bias(values_r: Floats, value: float) -> float:
    below = float(np.mean(values_r < value) + np.mean(values_r == value) / 2)
    return NORMAL.inv_cdf(below) if 0 < below < 1 else 0.0  # all on one side: nothing to correct by


def _acceleration(left_out_b: Floats) -> float:
    deviation_b = left_out_b.mean() - left_out_b
    spread = float((deviation_b**2).sum()) ** 1.5
    return float((deviation_b**3).sum()) / (6 * spread) if spread > 0 else 0.0
