"""Copying numbers of a text: attention that chooses among them and the model's own value (pointer networks,
arXiv:1506.03134; pointer-generator, arXiv:1704.04368).

Values bypass the layers of the model, so that a copied one is exact, of whatever size.

Shape suffixes: n all positions of a batch, m those whose value is predicted, c a chunk of them, s those that offer a
number, k the offered numbers, d width, r width of queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zerotune.models import cauchy
from zerotune.models.loss_head import chunk_rows
from zerotune.models.precision import exact

WIDTH = 64  # of queries and keys
FASTER = 30.0  # factor of the learning rate of all parts, which are new beside pretrained weights
SCALE = 1e-9  # of a copied number in the value space: less than the digits that a model writes


class Offers(NamedTuple):
    """The numbers that may be copied: each position offers the last one of its document up to itself.

    Positions are indices into the flattened rows of a batch.

    at_s: positions that offer a number. of_s: which one of number_k. value_k: the numbers in the value space. start_n:
    where the document of each position begins.
    """

    at_s: Tensor
    of_s: Tensor
    number_k: Tensor
    value_k: Tensor
    start_n: Tensor


def offers(
    is_number_bt: Tensor, values_bt: Tensor, position_ids_bt: Tensor | None, in_space: Callable[[Tensor], Tensor]
) -> Offers:
    """position_ids_bt: restart in each document; without, a row is one document. in_space: to the value space."""
    index_bt = torch.arange(values_bt.numel(), device=values_bt.device).view_as(values_bt)
    start_bt = index_bt[:, :1].expand_as(index_bt) if position_ids_bt is None else index_bt - position_ids_bt
    last_n = torch.where(is_number_bt, index_bt, -1).flatten().cummax(0).values
    at_s = (last_n >= start_bt.flatten()).nonzero()[:, 0]
    place_k, of_s = last_n[at_s].unique(return_inverse=True)
    number_k = values_bt.flatten()[place_k]
    return Offers(at_s, of_s, number_k, in_space(number_k), start_bt.flatten())


@dataclass(frozen=True)
class Copies:
    """Mixtures of the model's own value and a narrow Cauchy distribution at each earlier number.

    own_1: score of the model's own value.
    """

    query_mr: Tensor
    key_sr: Tensor
    own_1: Tensor
    at_m: Tensor
    offered: Offers

    def negative_log_density(self, value_m: Tensor, own_m: Tensor) -> Tensor:
        """[m] in the value space. own_m: of the model's own value. Chunks are computed again in the backward pass."""

        def mixed(query_cr: Tensor, at_c: Tensor, value_c: Tensor, own_c: Tensor) -> Tensor:
            scale = torch.tensor(SCALE, dtype=torch.float64, device=value_c.device)
            copied_ck = cauchy.negative_log_density(value_c[:, None], self.offered.value_k, scale)
            densities_c1s = -torch.cat([own_c[:, None], copied_ck[:, self.offered.of_s]], 1)
            return -(self._log_weights(query_cr, at_c) + densities_c1s).logsumexp(-1)

        chunks = zip(*(x.split(self._chunk) for x in (self.query_mr, self.at_m, value_m, own_m)), strict=True)
        return torch.cat([checkpoint(mixed, *chunk, use_reentrant=False) for chunk in chunks])

    def weights(self) -> list[Tensor]:
        """Chunks [c, 1 + k]: the probability of the model's own value, and of each earlier number."""
        chunks = zip(self.query_mr.split(self._chunk), self.at_m.split(self._chunk), strict=True)
        return [self._of_numbers(self._log_weights(*chunk).exp()) for chunk in chunks]

    @property
    def _chunk(self) -> int:
        return chunk_rows(8 * (len(self.offered.at_s) + 1), self.at_m.device)  # several matrices in float64

    def _log_weights(self, query_cr: Tensor, at_c: Tensor) -> Tensor:
        """[c, 1 + s] in float64."""
        is_earlier_cs = self.offered.at_s <= at_c[:, None]
        is_same_cs = self.offered.at_s >= self.offered.start_n[at_c][:, None]
        with torch.autocast(query_cr.device.type, enabled=False):  # bfloat16 has steps of 0.5 at scores of 100
            score_cs = (query_cr @ self.key_sr.T).masked_fill(~(is_earlier_cs & is_same_cs), -math.inf)
        return torch.cat([self.own_1.expand(len(at_c), 1), score_cs], 1).double().log_softmax(-1)

    def _of_numbers(self, weight_c1s: Tensor) -> Tensor:
        weight_ck = weight_c1s.new_zeros(len(weight_c1s), len(self.offered.value_k))
        return torch.cat([weight_c1s[:, :1], weight_ck.index_add_(1, self.offered.of_s, weight_c1s[:, 1:])], 1)


class Pointer(nn.Module):
    """Attention over the numbers before a value, and the model's own value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(WIDTH, width) / (FASTER * math.sqrt(width)))
        self.key = nn.Parameter(torch.randn(WIDTH, width) / (FASTER * math.sqrt(width)))
        self.own = nn.Parameter(torch.zeros(1))  # DeepSpeed needs a dimension

    def keys(self, hidden_nd: Tensor) -> Tensor:
        """[n, r]: of positions that offer a number."""
        with torch.autocast(hidden_nd.device.type, enabled=False):
            return F.linear(_features(exact(hidden_nd)), exact(self.key)) * (FASTER / math.sqrt(WIDTH))

    def queries(self, hidden_md: Tensor) -> Tensor:
        """[m, r]: of positions whose value is predicted."""
        with torch.autocast(hidden_md.device.type, enabled=False):
            return F.linear(_features(exact(hidden_md)), exact(self.query)) * FASTER

    @property
    def own_score(self) -> Tensor:
        """[1]: of the model's own value."""
        return exact(self.own) * FASTER

    def forward(self, hidden_md: Tensor, hidden_sd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(queries, keys, score of the model's own value), in plain tensors: ZeRO-3 gathers the weights again in their
        backward pass.
        """
        return self.queries(hidden_md), self.keys(hidden_sd), self.own_score


def _features(hidden_nd: Tensor) -> Tensor:
    """Hidden states of one size in all families, without the few outliers that are most of their norm in pretrained
    models (arXiv:2208.07339) and would drown all else.
    """
    return F.rms_norm(hidden_nd, hidden_nd.shape[-1:]).asinh()
