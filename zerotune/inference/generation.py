"""Generates continuations with a KV cache of our own: prompts share common prefixes, finished rows are replaced by
waiting ones (continuous batching), and each answer is the one that its prompt would get alone.

Shape suffixes: b rows, t positions, k keys, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zerotune.inference.batch_size import Budget
from zerotune.inference.causal_lm import KeyValues, Network, Prefix
from zerotune.inference.kv_cache import KVCache, buffer_length
from zerotune.inference.requests import Generate
from zerotune.inference.sampling import GenerationState, sample
from zerotune.inference.shared_prefixes import TokenSequence, groups, next_pack, sorted_sequences
from zerotune.inference.written_numbers import with_numbers

Finished = list[GenerationState]
REFILL_SHARE = 4  # refill when a quarter of the rows is free: single prefills would slow the others down
LEAST_SHARE = 2  # if rows are scarce, keep out rows shorter than half of the longest, which would waste buffer space


def generate(network: Network, tokenizer: Any, requests: Sequence[Generate], budget: Budget) -> Iterator[Finished]:
    """Yield finished requests, each once. For models that can share prefixes."""
    waiting = sorted(range(len(requests)), key=lambda k: -requests[k].length)
    while waiting:
        longest = requests[waiting[0]].length
        least = longest / LEAST_SHARE if longest * len(waiting) > budget.cached else 0
        rows = [GenerationState(k, requests[k], tokenizer) for k in waiting if requests[k].length >= least]
        session = _Session(network, rows, longest, budget)
        done: set[int] = set()
        try:
            for finished in session.run():
                done |= {row.index for row in finished}
                yield finished
        except (RuntimeError, MemoryError) as error:
            tokens = buffer_length(longest) * session.capacity
            budget.cached = min(budget.cached, tokens)
            budget.shrink(error, tokens, session.capacity)
        waiting = [k for k in waiting if k not in done]


class _Session:
    """Generates rows in one KV cache. longest: final length of the longest row, in tokens."""

    def __init__(self, network: Network, rows: Sequence[GenerationState], longest: int, budget: Budget) -> None:
        self._network, self._rows, self._budget = network, rows, budget
        self.capacity = min(max(budget.cached // buffer_length(longest), 1), len(rows))
        self._cache = KVCache(self.capacity, longest)
        # Running rows in the order of the cache, each with its last token, which is not cached yet.
        self._running: list[tuple[GenerationState, int]] = []
        self._prefix = Prefix(network)
        prompts = [(row.request.prefix_ids, len(row.request.prefix_ids) - 1) for row in rows]
        self._groups = list(groups(sorted_sequences(prompts, join=False)))
        self._unshared = [group[0] for group in self._groups if len(group) == 1]
        self._unshared.sort(key=lambda sequence: len(sequence.ids))  # popped from the end
        self._groups = [group for group in self._groups if len(group) > 1]

    @torch.inference_mode()
    def run(self) -> Iterator[Finished]:
        """Yield rows as they finish."""
        while self._groups or self._unshared or self._running:
            if self._cache.free * REFILL_SHARE >= self.capacity:
                while (self._groups or self._unshared) and self._cache.free:
                    yield self._prefill_pack(self._groups[0]) if self._groups else self._prefill_batch()
            if self._running:
                yield self._step()

    def _prefill_pack(self, group: list[TokenSequence]) -> Finished:
        """Prefill prompts that share a prefix, as many as the cache has free rows."""
        cached = self._prefix.common(group[0].ids)
        pack = next_pack(group, cached, self._budget.packed, most=self._cache.free)
        sequences = group[: pack.count]
        del group[: pack.count]
        if not group:
            self._groups.pop(0)
        prefix = self._prefix.of(sequences[0].ids[: pack.shared], self._budget.tokens)
        states_td, cached_kv = self._network.pack(pack, prefix)
        prefix_k = torch.arange(pack.shared)
        paths = [torch.from_numpy(path) for path in pack.token_indices]
        last_bd = states_td[torch.stack([path[-1] for path in paths]).to(states_td.device)]
        keys = [(0, torch.cat([prefix_k, pack.shared + path])) for path in paths]
        return self._start(sequences, last_bd, cached_kv, keys)

    def _prefill_batch(self) -> Finished:
        """Prefill prompts that share no prefix."""
        longest = len(self._unshared[-1].ids)
        sequences = self._unshared[-min(self._budget.rows(longest), self._cache.free) :][::-1]
        del self._unshared[-len(sequences) :]
        states_btd, cached_kv = self._network.rows([sequence.ids for sequence in sequences], keep=True)
        last_bd = torch.stack(
            [row_td[len(sequence.ids) - 1] for row_td, sequence in zip(states_btd, sequences, strict=True)]
        )
        keys = [(b, torch.arange(len(sequence.ids))) for b, sequence in enumerate(sequences)]
        return self._start(sequences, last_bd, cached_kv, keys)

    def _start(
        self, sequences: Sequence[TokenSequence], last_bd: Tensor, cached: KeyValues, keys: Sequence[tuple[int, Tensor]]
    ) -> Finished:
        """Sample each prompt's first token and add unfinished prompts to the cache.

        keys: for each prompt its row in `cached` and the indices of its keys there.
        """
        rows = [self._rows[sequence.row_indices[0]] for sequence in sequences]
        finished: Finished = []
        tokens = self._sample(rows, last_bd, lambda b: cached[-1][0][keys[b][0], 0, keys[b][1]])
        for row, token, (source, index_k) in zip(rows, tokens, keys, strict=True):
            if row.append(token):
                finished.append(row)
            else:
                self._cache.add_row(cached, source, index_k.to(last_bd.device))
                self._running.append((row, token))
        return finished

    def _step(self) -> Finished:
        """Generate one token for each running row."""
        ids_b = torch.tensor([token for _, token in self._running])
        position_b = torch.tensor(self._cache.lengths)
        cache, visible_btk, distance_tk = self._cache.step()
        states_btd = self._network.masked(ids_b[:, None], position_b[:, None], visible_btk, distance_tk, cache)
        rows = [row for row, _ in self._running]
        tokens = self._sample(rows, states_btd[:, 0], self._cache.last_keys)
        self._running = list(zip(rows, tokens, strict=True))
        finished: Finished = []
        for k in reversed(range(len(rows))):
            if rows[k].append(tokens[k]):
                finished.append(rows[k])
                self._cache.remove_row(k)
                self._running[k] = self._running[-1]  # as in the cache: the last row moves here
                self._running.pop()
        return finished

    def _sample(
        self, rows: Sequence[GenerationState], states_bd: Tensor, last_keys: Callable[[int], Tensor]
    ) -> list[int]:
        """Each row's next token; one block of logits exists at a time. last_keys: of a row, in the cache's last layer,
        which is a pointer's where the model has one.
        """
        tokens: list[int] = []
        for start in range(0, len(rows), self._network.block):
            block = slice(start, start + self._network.block)
            tokens += sample(rows[block], self._network.logits(states_bd[block]))
        return with_numbers(self._network, rows, tokens, states_bd, last_keys)
