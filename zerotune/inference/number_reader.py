"""Where a causal language model expects numbers, and which: answers `Measure` requests.

A number begins with `<NUM>` where the model reads numbers as values; with any token that spells a digit otherwise, or
with the sign that stands there.

Shape suffixes: p scored positions, m positions of numbers, v vocabulary, d width of the hidden states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from zerotune.models.pointer import offers

BEGINS = re.compile(r"\s*[-+\u2212]?[.]?\d")  # \d: digits of every script


def measure(
    network: Network, tokenizer: Any, requests: Sequence[Measure], budget: Budget
) -> Iterator[list[tuple[int, Measured]]]:
    """Yield batches of (index of the request, answer), each request once.

    Raises:
        UserError: The values cannot be computed from the model's last hidden states.
    """
    if requests and network.numbers:
        network.require_states()
    yield from in_batches(
        range(len(requests)),
        lambda k: requests[k].length,
        budget,
        lambda batch: list(zip(batch, _measured(network, tokenizer, [requests[k] for k in batch]), strict=True)),
    )


@torch.inference_mode()
def _measured(network: Network, tokenizer: Any, rows: Sequence[Measure]) -> list[Measured]:
    ids = [np.asarray(row.prefix_ids, dtype=np.int64) for row in rows]
    states_btd, _ = network.rows([own_t[:-1] for own_t in ids])
    width, states_nd = states_btd.shape[1], states_btd.flatten(0, 1)
    places = [np.setdiff1d(np.arange(row.first, len(row.prefix_ids)), row.inside) for row in rows]
    before = np.concatenate([b * width + at - 1 for b, at in enumerate(places)])
    before_p = torch.from_numpy(before).to(network.device)
    targets_p = torch.from_numpy(np.concatenate([own_t[at] for own_t, at in zip(ids, places, strict=True)]))
    is_number = np.concatenate([np.isin(at, row.numbers) for row, at in zip(rows, places, strict=True)])
    is_number_p = torch.from_numpy(is_number).to(network.device)
    begins_v, token_p = _begin_numbers(network, tokenizer), network.tokens_of(targets_p.to(network.device))
    rank_p, log_p_p = _expected(network, states_nd[before_p], begins_v, token_p.masked_fill(~is_number_p, -1))
    require_finite(bool(log_p_p.isfinite().all()))
    is_text_p = ~is_number_p & ~begins_v[token_p]  # a date has digits too
    predicted = _predicted(network, rows, states_btd, before_p[is_number_p]) if network.numbers else ()
    counts, numbers = [len(at) for at in places], [len(row.numbers) for row in rows]
    texts, mistaken = (x.cpu().split(counts) for x in (is_text_p, is_text_p & (rank_p == 1)))
    of_numbers = [x.cpu().split(numbers) for x in (rank_p[is_number_p], log_p_p[is_number_p], *predicted)]
    answers = [
        Measured(
            network.numbers is not None,
            row.values,
            int(texts[k].sum()),
            int(mistaken[k].sum()),
            *(tuple(column[k].tolist()) for column in of_numbers),
        )
        for k, row in enumerate(rows)
    ]
    trained_on = network.numbers.training_values if network.numbers else ()
    return [replace(answer, training_values=trained_on) for answer in answers]


def _expected(network: Network, states_pd: Tensor, begins_v: Tensor, first_p: Tensor) -> tuple[Tensor, Tensor]:
    """([p] rank of the best token that begins a number, from 1; [p] log-probability that one comes), in float64.

    first_p: the first token of the number that stands there, such as a minus, which begins numbers and other things; -1
    at text.
    """
    ranks, log_ps = [], []
    is_sign_p = (first_p >= 0) & ~begins_v[first_p]
    for part_pd, first_c1, is_sign_c1 in zip(
        *(x.split(network.block) for x in (states_pd, first_p[:, None], is_sign_p[:, None])), strict=True
    ):
        logits_pv = network.logits(part_pd)
        sign_p1 = logits_pv.gather(1, first_c1.clamp(min=0)).masked_fill(~is_sign_c1, -torch.inf)
        of_numbers_pv = torch.cat([logits_pv[:, begins_v], sign_p1], 1)
        best_p1 = of_numbers_pv.amax(-1, keepdim=True)
        ranks.append((logits_pv > best_p1).sum(-1) + 1)
        log_p_p = of_numbers_pv.double().logsumexp(-1)
        is_softmax = network.numbers is None or network.numbers.token_loss == "softmax"
        log_ps.append(log_p_p - logits_pv.double().logsumexp(-1) if is_softmax else log_p_p)
    return torch.cat(ranks).double(), torch.cat(log_ps)


def _predicted(network: Network, rows: Sequence[Measure], states_btd: Tensor, before_m: Tensor) -> list[Tensor]:
    """[m] each: the median, both ends of each central interval, and the -log density of the value.

    before_m: the positions before the numbers, in the flattened rows.
    """
    settings, module = network.numbers, network.model.numeric
    assert settings is not None
    width, states_nd = states_btd.shape[1], states_btd.flatten(0, 1)
    ids_bt = torch.tensor([[*row.prefix_ids[:-1], *[0] * (width + 1 - row.length)] for row in rows])
    tokens_bt, values_bt = numeric.separated(ids_bt.to(network.device), settings.token_id)
    offered = offers(settings.is_number(tokens_bt), values_bt, None, settings.in_space)
    found = module.values(
        states_nd, network.key_states_btd.flatten(0, 1), before_m, module.location(states_nd[before_m]), offered
    )
    values = [value for row in rows for value in row.values]
    losses_m = found.negative_log_density(torch.tensor(values, dtype=torch.float64, device=network.device))
    columns = [*found.quantiles([0.5, *settings.interval_shares]), losses_m]
    require_finite(all(bool(column.isfinite().all()) for column in columns))
    return columns


def _begin_numbers(network: Network, tokenizer: Any) -> Tensor:
    """[v]: whether a token begins a number."""
    begins_v = torch.zeros(int(network.config.vocab_size), dtype=torch.bool)
    begins_v[[network.numbers.token_id] if network.numbers else spell_digits(tokenizer, len(begins_v))] = True
    return begins_v.to(network.device)


@lru_cache(maxsize=2)
def spell_digits(tokenizer: Any, vocabulary: int) -> list[int]:
    """The tokens that begin a number in digits, with or without a sign and spaces. Raises UserError without any."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token] for token in range(min(vocabulary, len(tokenizer)))])
    found = [token for token, text in enumerate(texts) if token not in special and BEGINS.match(text)]
    if not found:
        raise UserError("no token of the tokenizer spells a digit, so numbers cannot be measured")
    return found
