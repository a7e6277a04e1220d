"""The values of the numbers that a model writes.

Shape suffixes: b rows, t positions, d width of the hidden states, k earlier positions, r width of a pointer's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from zerotune.inference.causal_lm import Network
from zerotune.inference.sampling import GenerationState, sample
from zerotune.models.numeric import Cause, drawn


def with_numbers(
    network: Network,
    rows: Sequence[GenerationState],
    tokens: Sequence[int],
    states_bd: Tensor,
    keys_of: Callable[[int], Tensor],
) -> list[int]:
    """The next tokens of rows, `<NUM>` replaced by a number. keys_of: a row's keys (k, r) of the pointer.

    Of rows that ask for it, the cause is drawn here, and decides on the token too.
    """
    if network.numbers is None:
        return list(tokens)
    network.require_states()
    chosen: list[int] = []
    for b, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        cause = _cause(network, row, states_bd[b]) if row.request.causal else None
        following = token if cause is None else int(cause.scores_v.argmax())
        if following == network.numbers.token_id:
            ids = [*row.request.prefix_ids, *row.ids]
            keys_kr = keys_of(b) if network.has_pointer else None
            following, interval = network.number(states_bd[b], keys_kr, ids, cause)
            row.intervals += interval
        chosen.append(following)
    return chosen


def _cause(network: Network, row: GenerationState, state_d: Tensor) -> Cause:
    share_d1 = torch.from_numpy(row.random_numbers(len(state_d) + 1)).to(state_d.device)
    return drawn(network.model, state_d, share_d1)


@torch.inference_mode()
def generate_without_cache(network: Network, rows: Sequence[GenerationState]) -> None:
    """Continue rows by reading them anew for each token: slow, and right for every family."""
    running = list(rows)
    while running:
        ids = [np.asarray([*row.request.prefix_ids, *row.ids], dtype=np.int64) for row in running]
        states_btd, _ = network.rows(ids)
        last_bd = torch.stack([own_td[len(own) - 1] for own_td, own in zip(states_btd, ids, strict=True)])

        def keys_of(b: int, ids: Sequence[np.ndarray] = ids) -> Tensor:
            return network.keys(b, len(ids[b]))

        tokens = with_numbers(network, running, sample(running, network.logits(last_bd)), last_bd, keys_of)
        running = [row for row, token in zip(running, tokens, strict=True) if not row.append(token)]
