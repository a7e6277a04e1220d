"""What a model with numbers does on held-out rows: metrics, and the levels that calibrate its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from train.protocols import Ranks
from zerotune.models.numeric import Predictions

INTERVAL = 0.9  # share of the values that the central interval in the metrics should hold
CLOSE = 0.01
BINS = 1000  # of the shares of the probability between a value and its mirror image
LEAST = 20  # numbers that calibrate


class HeldOutNumbers:
    """Sums over the numbers of one validation, on this rank until `summed`."""

    def __init__(self) -> None:
        self.sums, self.histogram = torch.zeros(5, dtype=torch.float64), torch.zeros(BINS, dtype=torch.float64)

    def add(self, found: Predictions) -> None:
        """Add what was predicted for one batch."""
        values, value_m = found.values, found.value_m
        (median_m,) = values.quantiles([0.5])
        level_m = (2 * values.shares_below(value_m) - 1).abs()  # of the central interval that just holds the value
        is_top_n = found.rank_n == 1
        sums = (
            is_top_n.sum(),
            (is_top_n & found.is_number_n).sum(),
            ((median_m - value_m).abs() <= CLOSE * value_m.abs()).sum(),
            (level_m <= INTERVAL).sum(),
            values.negative_log_density(value_m).sum(),
        )
        self.sums += torch.stack([one.double() for one in sums]).cpu()
        self.histogram += level_m.cpu().histc(BINS, 0, 1)

    def summed(self, ranks: Ranks) -> HeldOutNumbers:
        """Over all ranks."""
        total, size = HeldOutNumbers(), len(self.sums)
        both = torch.tensor(ranks.sum([*self.sums.tolist(), *self.histogram.tolist()]), dtype=torch.float64)
        total.sums, total.histogram = both[:size], both[size:]
        return total

    @property
    def metrics(self) -> Mapping[str, float]:
        """See `NumericLM.validate`. Without numbers, none."""
        numbers = float(self.histogram.sum())
        top, right, close, inside, density = self.sums.tolist()
        if not numbers:
            return {}
        return {
            "value_loss": density / numbers,
            "number_recall": right / numbers,
            "number_precision": right / top if top else 0.0,
            "within_1_percent": close / numbers,
            "interval_90": inside / numbers,
        }

    def level(self, share: float) -> float:
        """The share of the probability in a central interval that holds this share of values, also of new ones
        (split conformal prediction). The share itself if there are too few values.
        """
        numbers = float(self.histogram.sum())
        if numbers < LEAST:
            return share
        needed = min(math.ceil((numbers + 1) * share), numbers)
        return min(int((self.histogram.cumsum(0) < needed).sum()) + 1, BINS - 1) / BINS
