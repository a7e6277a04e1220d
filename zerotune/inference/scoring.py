"""Computes log-probabilities of continuations; prefixes that requests share are computed once.

Shape suffixes: b rows, t positions, p positions with logits, n target tokens, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zerotune.data.number_tokens import is_number
from zerotune.inference.batch_size import Budget, in_batches
from zerotune.inference.causal_lm import Network, Prefix
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.requests import Score, Scored
from zerotune.inference.shared_prefixes import Positions, TokenSequence, groups, next_pack, sorted_sequences

Scores = list[tuple[int, Scored]]


def score(network: Network, requests: Sequence[Score], budget: Budget) -> Iterator[Scores]:
    """Yield batches of (index of the request, answer), each request once, in any order."""
    rows = [(request.prefix_ids + request.continuation_ids[:-1], len(request.prefix_ids) - 1) for request in requests]
    sequences = sorted_sequences(rows)
    unshared: list[TokenSequence] = []
    scorer = _Scorer(network, requests)
    for group in groups(sequences) if network.shares_prefixes else ([sequence] for sequence in sequences):
        if len(group) == 1:
            unshared += group
        else:
            yield from scorer.packs(group, budget)
    yield from in_batches(unshared, lambda sequence: len(sequence.ids), budget, scorer.batch)


@dataclass(frozen=True)
class _Targets:
    """The target tokens of one request. at: indices of the states that predict them."""

    index: int
    at: Positions


class _Scorer:
    def __init__(self, network: Network, requests: Sequence[Score]) -> None:
        self._network, self._requests = network, requests
        self._prefix = Prefix(network)

    def packs(self, group: list[TokenSequence], budget: Budget) -> Iterator[Scores]:
        """Score a group of sequences as packs after cached prefixes."""
        while group:
            pack = next_pack(group, self._prefix.common(group[0].ids), budget.packed)
            sequences = group[: pack.count]
            try:
                with torch.inference_mode():
                    prefix = self._prefix.of(group[0].ids[: pack.shared], budget.tokens)
                    states_td, _ = self._network.pack(pack, prefix)
                    targets = [
                        _Targets(k, path[self._first(k) - pack.shared :])
                        for sequence, path in zip(sequences, pack.token_indices, strict=True)
                        for k in sequence.row_indices
                    ]
                    found = self._answers(states_td, targets)
            except (RuntimeError, MemoryError) as error:
                self._prefix.forget()
                budget.shrink(error, len(pack.ids) + pack.shared, pack.count)
                continue
            del group[: pack.count]
            yield found

    @torch.inference_mode()
    def batch(self, sequences: Sequence[TokenSequence]) -> Scores:
        """Score sequences that share no prefix."""
        states_btd, _ = self._network.rows([sequence.ids for sequence in sequences])
        width = states_btd.shape[1]
        targets = [
            _Targets(k, np.arange(self._first(k), len(sequence.ids)) + row * width)
            for row, sequence in enumerate(sequences)
            for k in sequence.row_indices
        ]
        return self._answers(states_btd.flatten(0, 1), targets)

    def _first(self, index: int) -> int:
        return len(self._requests[index].prefix_ids) - 1

    def _answers(self, states_td: Tensor, targets: Sequence[_Targets]) -> Scores:
        """The answers from hidden states; logits of a position that several requests need are computed once."""
        requests = [self._requests[one.index] for one in targets]
        counts = [len(request.continuation_ids) for request in requests]
        at_n = np.concatenate([one.at[:count] for one, count in zip(targets, counts, strict=True)])
        at_p, position_n = np.unique(at_n, return_inverse=True)
        targets_n = np.concatenate([request.continuation_ids for request in requests])
        device = self._network.device
        log_prob_n, greedy_n = self._network.log_probs(
            states_td[torch.from_numpy(at_p).to(device)],
            torch.from_numpy(position_n).to(device),
            self._network.tokens_of(torch.from_numpy(targets_n).to(device)),
        )
        parts = log_prob_n.double().cpu().split(counts)
        greedy = [bool(part.all()) for part in greedy_n.cpu().split(counts)]
        require_finite(bool(torch.isfinite(log_prob_n).all()))
        return [
            (one.index, _scored(request, log_probs, best))
            for one, request, log_probs, best in zip(targets, requests, parts, greedy, strict=True)
        ]


def _scored(request: Score, log_prob_n: Tensor, greedy: bool) -> Scored:
    is_unknown_n = torch.tensor([token == request.unknown_id or is_number(token) for token in request.continuation_ids])
    return Scored(
        float(log_prob_n.sum()), len(log_prob_n), request.bytes, greedy,
        int(is_unknown_n.sum()), float(log_prob_n[is_unknown_n].sum()),
    )  # fmt: skip
