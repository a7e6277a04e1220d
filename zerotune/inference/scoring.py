"""Log-probabilities of continuations. What several requests have in common is computed once.

Shape suffixes: b rows, t positions, p places with logits, n wanted tokens, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zerotune.inference.budget import Budget, in_batches
from zerotune.inference.finite import require_finite
from zerotune.inference.network import Network, Prefix
from zerotune.inference.prefixes import Line, Places, groups, next_pack, sorted_lines
from zerotune.inference.requests import Score, Scored

Scores = list[tuple[int, Scored]]


def score(network: Network, requests: Sequence[Score], budget: Budget) -> Iterator[Scores]:
    """(index of the request, answer), batch by batch, each request once; in an order of its own."""
    rows = [(request.prefix_ids + request.continuation_ids[:-1], len(request.prefix_ids) - 1) for request in requests]
    lines = sorted_lines(rows)
    alone: list[Line] = []
    scorer = _Scorer(network, requests)
    for group in groups(lines) if network.shares_prefixes else ([line] for line in lines):
        if len(group) == 1:
            alone += group
        else:
            yield from scorer.packs(group, budget)
    yield from in_batches(alone, lambda line: len(line.ids), budget, scorer.batch)


@dataclass(frozen=True)
class _Want:
    """The tokens whose log-probabilities a request asks for. at: the states that predict them."""

    index: int
    at: Places


class _Scorer:
    def __init__(self, network: Network, requests: Sequence[Score]) -> None:
        self._network, self._requests = network, requests
        self._prefix = Prefix(network)

    def packs(self, group: list[Line], budget: Budget) -> Iterator[Scores]:
        """A group's lines as packs behind cached prefixes."""
        while group:
            pack = next_pack(group, self._prefix.common(group[0].ids), budget.packed)
            lines = group[: pack.lines]
            try:
                with torch.inference_mode():
                    prefix = self._prefix.of(group[0].ids[: pack.shared], budget.tokens)
                    states_td, _ = self._network.pack(pack, prefix)
                    wants = [
                        _Want(k, path[self._first(k) - pack.shared :])
                        for line, path in zip(lines, pack.paths, strict=True)
                        for k in line.members
                    ]
                    found = self._answers(states_td, wants)
            except (RuntimeError, MemoryError) as error:
                self._prefix.forget()
                budget.shrink(error, len(pack.ids) + pack.shared, pack.lines)
                continue
            del group[: pack.lines]
            yield found

    @torch.inference_mode()
    def batch(self, lines: Sequence[Line]) -> Scores:
        """Lines that share nothing."""
        states_btd, _ = self._network.rows([line.ids for line in lines])
        width = states_btd.shape[1]
        wants = [
            _Want(k, np.arange(self._first(k), len(line.ids)) + row * width)
            for row, line in enumerate(lines)
            for k in line.members
        ]
        return self._answers(states_btd.flatten(0, 1), wants)

    def _first(self, index: int) -> int:
        return len(self._requests[index].prefix_ids) - 1

    def _answers(self, states_td: Tensor, wants: Sequence[_Want]) -> Scores:
        """The answers, from the states at the places that they want; a place that several want is used once."""
        asked = [self._requests[want.index] for want in wants]
        counts = [len(request.continuation_ids) for request in asked]
        at_n = np.concatenate([want.at[:count] for want, count in zip(wants, counts, strict=True)])
        at_p, place_n = np.unique(at_n, return_inverse=True)
        targets_n = np.concatenate([request.continuation_ids for request in asked])
        device = self._network.device
        log_prob_n, greedy_n = self._network.log_probs(
            states_td[torch.from_numpy(at_p).to(device)],
            torch.from_numpy(place_n).to(device),
            torch.from_numpy(targets_n).to(device),
        )
        sums = [float(part.sum()) for part in log_prob_n.double().cpu().split(counts)]
        greedy = [bool(part.all()) for part in greedy_n.cpu().split(counts)]
        require_finite(bool(np.isfinite(sums).all()))
        return [
            (want.index, Scored(log_prob, len(request.continuation_ids), request.bytes, best))
            for want, request, log_prob, best in zip(wants, asked, sums, greedy, strict=True)
        ]
