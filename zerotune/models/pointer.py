"""Copying numbers of a text: attention that chooses among them and the model's own value (pointer networks,
arXiv:1506.03134; pointer-generator, arXiv:1704.04368).

Values bypass the layers of the model, so that a copied one is exact, of whatever size.

Shape suffixes: n all positions of a batch, m those whose value is predicted, c a chunk of them, s those that offer a
number, d width, r width of queries and keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zerotune.models.loss_head import chunk_rows

WIDTH = 64  # of queries and keys


class Offers(NamedTuple):
    """The numbers that may be copied: each position offers the last one of its document up to itself.

    Positions are indices into the flattened rows of a batch.

    at_s: positions that offer a number. value_s: it. start_n: where the document of each position begins.
    """

    at_s: Tensor
    value_s: Tensor
    start_n: Tensor


def offers(is_number_bt: Tensor, values_bt: Tensor, position_ids_bt: Tensor | None) -> Offers:
    """values_bt: in the space in which they are copied. position_ids_bt: restart in each document; without, a row is
    one document.
    """
    index_bt = torch.arange(values_bt.numel(), device=values_bt.device).view_as(values_bt)
    start_bt = index_bt[:, :1].expand_as(index_bt) if position_ids_bt is None else index_bt - position_ids_bt
    last_n = torch.where(is_number_bt, index_bt, -1).flatten().cummax(0).values
    at_s = (last_n >= start_bt.flatten()).nonzero()[:, 0]
    return Offers(at_s, values_bt.flatten()[last_n[at_s]], start_bt.flatten())


class Pointer(nn.Module):
    """A location of a value: the mean of the numbers before it and the model's own, weighted by attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(WIDTH, width) / math.sqrt(width))
        self.key = nn.Parameter(torch.randn(WIDTH, width) / math.sqrt(width))
        self.own = nn.Parameter(torch.zeros(1))  # score of the model's own value; DeepSpeed needs a dimension

    def keys(self, hidden_nd: Tensor) -> Tensor:
        """[n, r]: of positions that offer a number."""
        with torch.autocast(hidden_nd.device.type, enabled=False):
            return F.linear(hidden_nd.to(self.key.dtype), self.key) / math.sqrt(WIDTH)

    def last(self, hidden_d: Tensor, own_1: Tensor, key_sr: Tensor, value_s: Tensor) -> Tensor:
        """[1]: the location for the last position of a row. key_sr: of the positions that offer a number."""
        query_1r = F.linear(hidden_d[None].to(self.query.dtype), self.query)
        return self._mean(query_1r, own_1, key_sr, value_s, torch.ones_like(value_s[None], dtype=torch.bool))

    def forward(self, hidden_nd: Tensor, at_m: Tensor, own_m: Tensor, offered: Offers) -> Tensor:
        """[m] in float64. own_m: the model's own locations."""
        key_sr = self.keys(hidden_nd[offered.at_s])
        with torch.autocast(hidden_nd.device.type, enabled=False):
            query_mr = F.linear(hidden_nd[at_m].to(self.query.dtype), self.query)

            def mean(query_cr: Tensor, own_c: Tensor, at_c: Tensor) -> Tensor:
                is_earlier_cs = offered.at_s <= at_c[:, None]
                is_same_cs = offered.at_s >= offered.start_n[at_c][:, None]
                return self._mean(query_cr, own_c, key_sr, offered.value_s, is_earlier_cs & is_same_cs)

            size = chunk_rows(len(offered.at_s) + 1, hidden_nd.device)
            chunks = zip(query_mr.split(size), own_m.split(size), at_m.split(size), strict=True)
            return torch.cat([checkpoint(mean, *chunk, use_reentrant=False) for chunk in chunks])

    def _mean(self, query_cr: Tensor, own_c: Tensor, key_sr: Tensor, value_s: Tensor, is_offered_cs: Tensor) -> Tensor:
        score_cs = (query_cr @ key_sr.T).masked_fill(~is_offered_cs, -math.inf)
        weight_c1s = torch.cat([self.own.expand(len(own_c), 1), score_cs], 1).double().softmax(-1)
        return weight_c1s[:, 0] * own_c + weight_c1s[:, 1:] @ value_s
