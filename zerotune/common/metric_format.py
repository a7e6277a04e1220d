"""The scales of metrics, and the format of their values in all reports of training and evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGE = 1000.0  # numbers from here on are written without decimals
WHOLE = 1e6  # numbers from here on are written as powers of ten


@dataclass(frozen=True)
class Scale:
    """The scale of a metric.

    name: in result.json. low, high: limits of its values. label: follows the metric's name if the scale is not obvious.
    is_ratio: values are compared by their ratio, not by their difference.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    label: str = ""
    is_ratio: bool = False

    @property
    def unit(self) -> str:
        """The unit of a difference."""
        return " points" if self is SHARE else ""

    @property
    def no_change(self) -> float:
        """The change between two equal values."""
        return 1.0 if self.is_ratio else 0.0

    def number(self, value: float | None) -> str:
        """Format a value: shares in percent, other numbers plain."""
        if value is None:
            return ""
        return percent(value) if self is SHARE else plain(value)

    def change(self, value: float) -> str:
        """Format a signed difference, of shares in percentage points; a ratio as a factor: x0.82."""
        if self.is_ratio:
            return f"x{value:.3g}" if abs(value - 1) > 0.05 else f"x{value:.4g}"
        if self is SHARE:
            return _signed(100 * value, f"{100 * value:+.1f}")
        return _signed(value, f"+{plain(value)}" if value > 0 else plain(value))

    def between(self, before: float, after: float) -> float:
        """The difference or ratio of two values, for `change`."""
        if not self.is_ratio:
            return after - before
        return after / before if math.isfinite(before) and before > 0 else math.nan


SHARE = Scale("share", 0.0, 1.0)
HUNDRED = Scale("0-100", 0.0, 100.0, "0-100")
CORRELATION = Scale("-1 to 1", -1.0, 1.0, "-1 to 1")
PERPLEXITY = Scale("perplexity", 1.0, is_ratio=True)
POSITIVE = Scale("positive", 0.0)
UNBOUNDED = Scale("unbounded")

SCALES = {scale.name: scale for scale in (SHARE, HUNDRED, CORRELATION, PERPLEXITY, POSITIVE, UNBOUNDED)}


def plain(value: float) -> str:
    """Four significant digits; from 1,000 on integers with separators, from a million on powers of ten."""
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < WHOLE:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.4g}"


def percent(share: float) -> str:
    """One decimal, or more near 0 % and 100 %: 83.2 %, 0.52 %, 0.0013 %, 99.96 %."""
    if not math.isfinite(share):
        return "not finite"
    shown = 100 * share
    for rest in (abs(shown), abs(100 - shown)):  # two significant digits of the share, or of the rest to 100 %
        if 1e-7 < rest < 0.95:
            return f"{shown:.{min(1 - math.floor(math.log10(rest)), 7)}f} %"
    return f"{shown:.1f} %"


def _signed(value: float, text: str) -> str:
    """Remove the sign of a difference that is 0 or rounds to 0."""
    return text.lstrip("+-") if value == 0 or not text.strip("+-0.") else text
