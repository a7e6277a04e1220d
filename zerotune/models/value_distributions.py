"""Distributions of values: densities, quantiles and draws.

Shape suffixes: m values, c a chunk of them, k the numbers that may be copied, f features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zerotune.data.numbers_in_text import LARGEST
from zerotune.models import cauchy, pointer
from zerotune.models.pointer import Copies

LARGEST_ASINH = math.asinh(LARGEST)
NEAR = 1e3 * pointer.SCALE
BISECTIONS = 64  # of +-LARGEST_ASINH, down to the precision of float64


class Values(NamedTuple):
    """Distributions of values: Cauchy, or mixtures of it with copies of earlier numbers.

    location_m, scale_m: in float64 and in the units of a value space.
    """

    location_m: Tensor
    scale_m: Tensor
    space: str
    copies: Copies | None = None

    def negative_log_density(self, value_m: Tensor) -> Tensor:
        """-log of the density of a value itself, whatever the space: comparable between both."""
        point_m = value_m if self.space == "linear" else value_m.asinh()
        loss_m = cauchy.negative_log_density(point_m, self.location_m, self.scale_m)
        if self.copies is not None:
            loss_m = self.copies.negative_log_density(point_m, loss_m)
        if self.space == "linear":
            return loss_m
        return loss_m + torch.hypot(torch.ones_like(value_m), value_m).log()  # asinh'(v) = 1 / sqrt(1 + v^2)

    def quantiles(self, shares: Sequence[float]) -> list[Tensor]:
        """The values below which these shares of the probability lie; 0.5: the median. At most +-LARGEST."""
        if self.copies is None:
            return [self._value(self.location_m + self.scale_m * cauchy.standard_quantile(share)) for share in shares]
        mixtures = self._mixtures()
        return [torch.cat([self._mixture_quantile(share, *mixture) for mixture in mixtures]) for share in shares]

    def shares_below(self, value_m: Tensor) -> Tensor:
        """[m]: the share of the probability below a value."""
        point_m = value_m if self.space == "linear" else value_m.asinh()
        mixtures = self._mixtures()
        points = point_m.split([len(weight_ck) for weight_ck, _, _ in mixtures])
        return torch.cat([_share_below(point_c, *mixture) for point_c, mixture in zip(points, mixtures, strict=True)])

    def drawn(self, deviation: Tensor, share: float) -> Values:
        """A draw, as the location: the own value moved by `deviation`, or an earlier number. share: between 0 and 1,
        decides which; of one position.
        """
        location_m = self.location_m + deviation
        if self.copies is not None:
            (weight_1k,) = self.copies.weights()
            value_k = torch.cat([location_m, self.copies.offered.value_k])
            chosen_1 = (weight_1k.cumsum(-1) < share).sum(-1).clamp(max=len(value_k) - 1)
            location_m = value_k[chosen_1]  # rounding of `sinh` is below the digits that are written
        return Values(location_m, self.scale_m, self.space)

    @property
    def features(self) -> Tensor:
        """[m, f] in float64, smooth in all parameters: the own location (asinh), the log of its scale, its probability,
        and the sum of the copies (asinh), weighted by theirs.
        """
        location_m = self.location_m if self.space == "asinh" else self.location_m.asinh()
        features = [location_m, self.scale_m.log()]
        if self.copies is not None:
            weight_mk = torch.cat(self.copies.weights())
            features += [weight_mk[:, 0], weight_mk[:, 1:] @ self.copies.offered.number_k.asinh()]
        return torch.stack(features, -1)

    def _value(self, point_m: Tensor) -> Tensor:
        if self.space == "asinh":
            point_m = point_m.clamp(-LARGEST_ASINH, LARGEST_ASINH).sinh()
        return point_m.clamp(-LARGEST, LARGEST)

    def _mixtures(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Chunks of (weights, locations, scales) [c, 1 + k]: of the own value, and of each earlier number."""
        if self.copies is None:
            return [(torch.ones_like(self.location_m)[:, None], self.location_m[:, None], self.scale_m[:, None])]
        weights, value_k = self.copies.weights(), self.copies.offered.value_k
        sizes = [len(weight_ck) for weight_ck in weights]
        own = zip(self.location_m.split(sizes), self.scale_m.split(sizes), strict=True)
        return [
            (
                weight_ck,
                torch.cat([location_c[:, None], value_k.expand(len(location_c), -1)], 1),
                F.pad(scale_c[:, None], (0, len(value_k)), value=pointer.SCALE),
            )
            for weight_ck, (location_c, scale_c) in zip(weights, own, strict=True)
        ]

    def _mixture_quantile(self, share: float, weight_ck: Tensor, location_ck: Tensor, scale_ck: Tensor) -> Tensor:
        """By bisection of the asinh of the value, which resolves all sizes alike."""
        high_c = torch.full_like(location_ck[:, 0], LARGEST_ASINH)
        low_c = -high_c
        for _ in range(BISECTIONS):
            middle_c = (low_c + high_c) / 2
            point_c = middle_c if self.space == "asinh" else middle_c.sinh()
            is_below_c = _share_below(point_c, weight_ck, location_ck, scale_ck) < share
            low_c, high_c = torch.where(is_below_c, middle_c, low_c), torch.where(is_below_c, high_c, middle_c)
        return self._snapped(((low_c + high_c) / 2).sinh().clamp(-LARGEST, LARGEST))

    def _snapped(self, value_c: Tensor) -> Tensor:
        """A copied number itself for what is within its narrow distribution."""
        if self.copies is None or not len(self.copies.offered.number_k):
            return value_c
        number_k = self.copies.offered.number_k
        distance_ck = (value_c[:, None] - number_k).abs()
        is_copy_ck = distance_ck <= NEAR * (1 + number_k.abs())
        nearest_c = number_k[torch.where(is_copy_ck, distance_ck, math.inf).argmin(-1)]
        return torch.where(is_copy_ck.any(-1), nearest_c, value_c)


def _share_below(point_c: Tensor, weight_ck: Tensor, location_ck: Tensor, scale_ck: Tensor) -> Tensor:
    below_ck = 0.5 + ((point_c[:, None] - location_ck) / scale_ck).atan() / math.pi
    return (weight_ck * below_ck).sum(-1)
