"""Metrics of predicted numbers: where a model expects them, how far its values are off, whether intervals hold them.

Columns of a row: `numbers` and `texts`, scored positions where a number comes and where none does; `found` and
`mistaken`, at how many of each the model predicts a number; sums over its numbers of `rank`, `probability`,
`inside_50`, `inside_90`, `value_loss`. Lists of a row: `error` and `relative_error` of the numbers that are found.

Shape suffixes: m numbers, s resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.protocols import Columns, ListMetric, Metric, RatioMetric
from zerotune.common.metric_format import POSITIVE, UNBOUNDED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST_OF_MEDIAN = 20  # rows
FEWEST_EFFECTIVE = 20  # below, intervals of a mean of squares hold the true one in less than 9 of 10 cases
FEWEST_OF_SQUARES = 100  # rows: few large errors dominate a mean of squares
NO_NUMBERS = "no numbers"
WITHOUT_VALUES = "the model writes numbers in digits: it has no intervals and no density of a value"


def no_best_share(base: Columns, other: Columns) -> str:
    """Coverage is good where it is near its nominal share, so neither more nor less is better."""
    return "not compared: coverage should be near its nominal share, neither higher nor lower"


def median(value_m: Floats, weight_sm: Floats) -> Floats:
    """[s] weighted medians of sorted values; of an even number the mean of both middle ones."""
    total_sm = weight_sm.cumsum(axis=1)
    half_s1 = total_sm[:, -1:] / 2
    low_s, high_s = (total_sm < half_s1).sum(axis=1), (total_sm <= half_s1).sum(axis=1)
    found: Floats = value_m[low_s] / 2 + value_m[high_s] / 2
    return found


def root_mean_square(value_m: Floats, weight_sm: Floats) -> Floats:
    """[s] weighted. Scaled by the largest value, so that squares do not overflow."""
    largest = float(abs(value_m).max()) or 1.0
    if not math.isfinite(largest):
        return value_m[-1:].repeat(len(weight_sm))
    found: Floats = largest * (weight_sm @ (value_m / largest) ** 2 / weight_sm.sum(axis=1)) ** 0.5
    return found


def dominated(value_m: Floats) -> str:
    """Why a mean of squares has no interval: few large ones decide it (Kish's effective number of squares is small)."""
    square_m = (value_m / (float(value_m[-1]) or 1.0)) ** 2
    effective = float(square_m.sum() ** 2 / (square_m**2).sum()) if square_m.any() else math.inf
    if effective >= FEWEST_EFFECTIVE:
        return ""
    return "too few large errors for an interval: they decide the mean of squares alone"


def relative_error(found: float, value: float) -> float:
    """The error as a share of the value; of 0, which has no such share, infinity."""
    error = abs(found - value)
    return error / abs(value) if value else math.inf if error else 0.0


def mean(values: Sequence[float]) -> float:
    """Of values up to 1e300, whose sum may overflow."""
    return math.fsum(value / len(values) for value in values)


def errors(pairs: Sequence[tuple[float, float]]) -> Mapping[str, tuple[float, ...]]:
    """The lists of a row. pairs: predicted and true values."""
    return {
        "error": tuple(abs(found - value) for found, value in pairs),
        "relative_error": tuple(relative_error(found, value) for found, value in pairs),
    }


ERRORS = (
    ListMetric(
        "rmse", False, "error", root_mean_square, POSITIVE, FEWEST_OF_SQUARES, is_smooth=True, too_few=dominated
    ),
    ListMetric("median_error", False, "error", median, POSITIVE, FEWEST_OF_MEDIAN),
    ListMetric("median_relative_error", False, "relative_error", median, POSITIVE, FEWEST_OF_MEDIAN),
)
METRICS: tuple[Metric, ...] = (
    RatioMetric("number_recall", True, "found", ("numbers",), missing=NO_NUMBERS, is_count=True),
    RatioMetric("number_precision", True, "found", ("found", "mistaken"), is_count=True),
    RatioMetric("number_rank", False, "rank", ("numbers",), POSITIVE, missing=NO_NUMBERS),
    RatioMetric("number_probability", True, "probability", ("numbers",), missing=NO_NUMBERS),
    *ERRORS,
    *(
        RatioMetric(
            f"interval_{share}", True, f"inside_{share}", ("numbers",),
            incomparable=no_best_share, missing=WITHOUT_VALUES, is_count=True,
        )
        for share in (50, 90)
    ),
    RatioMetric("value_loss", False, "value_loss", ("numbers",), UNBOUNDED, missing=WITHOUT_VALUES),
)  # fmt: skip
