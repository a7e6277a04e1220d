"""Where a causal language model expects numbers, and which: answers `Measure` requests.

A number begins with `<NUM>` where the model reads numbers as values; with any token that spells a digit otherwise.

Shape suffixes: p scored positions, m positions of numbers, v vocabulary, d width of the hidden states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerotune.common.errors import UserError
from zerotune.inference.batch_size import Budget, in_batches
from zerotune.inference.causal_lm import Network
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.requests import Measure, Measured
from zerotune.models import numeric

BEGINS = re.compile(r"\s*[-+\u2212]?[.]?\d")  # \d: digits of every script
INTERVALS = (0.5, 0.9)  # shares of the probability in the central intervals


def measure(
    network: Network, tokenizer: Any, requests: Sequence[Measure], budget: Budget
) -> Iterator[list[tuple[int, Measured]]]:
    """Yield batches of (index of the request, answer), each request once.

    Raises:
        UserError: The values cannot be computed from the model's last hidden states.
    """
    if requests and network.numbers and not network.has_plain_head:
        raise UserError(f"{type(network.model).__name__} changes its hidden states before its output layer")
    yield from in_batches(
        range(len(requests)),
        lambda k: requests[k].length,
        budget,
        lambda batch: list(zip(batch, _measured(network, tokenizer, [requests[k] for k in batch]), strict=True)),
    )


@torch.inference_mode()
def _measured(network: Network, tokenizer: Any, rows: Sequence[Measure]) -> list[Measured]:
    states_btd, _ = network.rows([np.asarray(row.prefix_ids[:-1], dtype=np.int64) for row in rows])
    places = [np.setdiff1d(np.arange(row.first, len(row.prefix_ids)), row.inside) for row in rows]
    states_pd = torch.cat([own_td[at - 1] for own_td, at in zip(states_btd, places, strict=True)])
    targets_p = torch.from_numpy(
        np.concatenate([np.asarray(row.prefix_ids, dtype=np.int64)[at] for row, at in zip(rows, places, strict=True)])
    ).to(network.device)
    begins_v = _begin_numbers(network, tokenizer)
    rank_p, log_p_p = _expected(network, states_pd, begins_v)
    is_number_p = torch.from_numpy(
        np.concatenate([np.isin(at, row.numbers) for row, at in zip(rows, places, strict=True)])
    ).to(network.device)
    is_text_p = ~is_number_p & ~begins_v[network.tokens_of(targets_p)]  # a date begins with a digit too
    require_finite(bool(log_p_p.isfinite().all()))
    values = [value for row in rows for value in row.values]
    at_m = [k * states_btd.shape[1] + at - 1 for k, row in enumerate(rows) for at in row.numbers]
    predicted = _predicted(network, rows, states_btd, at_m, values) if network.numbers else ()
    counts = [len(at) for at in places]
    numbers = [len(row.numbers) for row in rows]
    texts, mistaken = (x.cpu().split(counts) for x in (is_text_p, is_text_p & (rank_p == 1)))
    of_numbers = [x.cpu().split(numbers) for x in (rank_p[is_number_p], log_p_p[is_number_p], *predicted)]
    return [
        Measured(
            network.numbers is not None,
            row.values,
            int(texts[k].sum()),
            int(mistaken[k].sum()),
            *(tuple(column[k].tolist()) for column in of_numbers),
        )
        for k, row in enumerate(rows)
    ]


def _expected(network: Network, states_pd: Tensor, begins_v: Tensor) -> tuple[Tensor, Tensor]:
    """([p] rank of the best token that begins a number, from 1; [p] log-probability that one comes), in float64."""
    ranks, log_ps = [], []
    for part_pd in states_pd.split(network.block):
        logits_pv = network.logits(part_pd)
        of_numbers_pv = logits_pv[:, begins_v]
        best_p1 = of_numbers_pv.amax(-1, keepdim=True)
        ranks.append((logits_pv > best_p1).sum(-1) + 1)
        log_p_p = of_numbers_pv.double().logsumexp(-1)
        is_softmax = network.numbers is None or network.numbers.token_loss == "softmax"
        log_ps.append(log_p_p - logits_pv.double().logsumexp(-1) if is_softmax else log_p_p)
    return torch.cat(ranks).double(), torch.cat(log_ps)


def _predicted(
    network: Network, rows: Sequence[Measure], states_btd: Tensor, at_m: Sequence[int], values: Sequence[float]
) -> list[Tensor]:
    """[m] each: the median, both ends of each central interval, and the -log density of the value.

    at_m: the positions before the numbers, in the flattened rows.
    """
    assert network.numbers is not None
    ids_bt = np.zeros(states_btd.shape[:2], dtype=np.int64)
    for ids_t, row in zip(ids_bt, rows, strict=True):
        ids_t[: len(row.prefix_ids) - 1] = row.prefix_ids[:-1]
    offered = numeric.offered(*network.separated(torch.from_numpy(ids_bt)), network.numbers)
    module, states_nd, at = network.model.numeric, states_btd.flatten(0, 1), torch.tensor(at_m, device=network.device)
    found = module.values(states_nd, at, module.location(states_nd[at]), offered)
    value_m = torch.tensor(values, dtype=torch.float64, device=network.device)
    ends = [found.quantile(0.5 + side * share / 2) for share in INTERVALS for side in (-1, 1)]
    columns = [found.quantile(0.5), *ends, found.negative_log_density(value_m)]
    require_finite(all(bool(column.isfinite().all()) for column in columns))
    return columns


@lru_cache(maxsize=1)
def _begin_numbers(network: Network, tokenizer: Any) -> Tensor:
    """[v]: whether a token begins a number."""
    size = int(network.config.vocab_size)
    begins_v = torch.zeros(size, dtype=torch.bool)
    if network.numbers:
        begins_v[network.numbers.token_id] = True
    else:
        special = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[token] for token in range(min(size, len(tokenizer)))])
        found = [token for token, text in enumerate(texts) if token not in special and BEGINS.match(text)]
        if not found:
            raise UserError("no token of the tokenizer spells a digit, so numbers cannot be measured")
        begins_v[found] = True
    return begins_v.to(network.device)
