"""Continuations of prompts with a key/value cache of our own: prompts that begin alike share their beginning, rows that
have ended make room for waiting ones, and the answers are those that each prompt would get alone.

Shape suffixes: b rows, t positions, k keys, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zerotune.inference.budget import Budget
from zerotune.inference.kv_cache import Slots, slots_of
from zerotune.inference.network import KeyValues, Network, Prefix
from zerotune.inference.prefixes import Line, groups, next_pack, sorted_lines
from zerotune.inference.requests import Generate
from zerotune.inference.sampling import Answering, choose

Answers = list[Answering]  # those that have ended
REFILL_SHARE = 4  # waiting rows enter when a quarter of the places is free: one by one they would hold up the others
LEAST_SHARE = 2  # where places are short, rows of less than half the longest one's length would waste theirs


def generate(network: Network, tokenizer: Any, requests: Sequence[Generate], budget: Budget) -> Iterator[Answers]:
    """Answers as they end, each request once; for models that share prefixes."""
    waiting = sorted(range(len(requests)), key=lambda k: -requests[k].slots)
    while waiting:
        longest = requests[waiting[0]].slots
        least = longest / LEAST_SHARE if longest * len(waiting) > budget.cached else 0
        rows = [Answering(k, requests[k], tokenizer) for k in waiting if requests[k].slots >= least]
        session = _Session(network, rows, longest, budget)
        done: set[int] = set()
        try:
            for answers in session.run():
                done |= {answer.index for answer in answers}
                yield answers
        except (RuntimeError, MemoryError) as error:
            tokens = slots_of(longest) * session.places
            budget.cached = min(budget.cached, tokens)
            budget.shrink(error, tokens, session.places)
        waiting = [k for k in waiting if k not in done]


class _Session:
    """Rows that pass through the same buffers. longest: token positions of the longest of them in the end."""

    def __init__(self, network: Network, rows: Sequence[Answering], longest: int, budget: Budget) -> None:
        self._network, self._rows, self._budget = network, rows, budget
        self.places = min(max(budget.cached // slots_of(longest), 1), len(rows))
        self._slots = Slots(self.places, longest)
        self._live: list[
            tuple[Answering, int]
        ] = []  # in the order of their places; with a token that is not cached yet
        self._prefix = Prefix(network)
        prompts = [(row.request.prefix_ids, len(row.request.prefix_ids) - 1) for row in rows]
        self._groups = list(groups(sorted_lines(prompts, join=False)))
        self._alone = [group[0] for group in self._groups if len(group) == 1]
        self._alone.sort(key=lambda line: len(line.ids))  # taken from the end
        self._groups = [group for group in self._groups if len(group) > 1]

    @torch.inference_mode()
    def run(self) -> Iterator[Answers]:
        """The answers, as they end."""
        while self._groups or self._alone or self._live:
            if self._slots.free * REFILL_SHARE >= self.places:
                while (self._groups or self._alone) and self._slots.free:
                    yield self._enter_pack(self._groups[0]) if self._groups else self._enter_batch()
            if self._live:
                yield self._step()

    def _enter_pack(self, group: list[Line]) -> Answers:
        """Prompts that share their beginning go through the model, as many as there are places for."""
        cached = self._prefix.common(group[0].ids)
        pack = next_pack(group, cached, self._budget.packed, most=self._slots.free)
        lines = group[: pack.lines]
        del group[: pack.lines]
        if not group:
            self._groups.pop(0)
        prefix = self._prefix.of(lines[0].ids[: pack.shared], self._budget.tokens)
        states_td, cached_kv = self._network.pack(pack, prefix)
        before_k = torch.arange(pack.shared)
        paths = [torch.from_numpy(path) for path in pack.paths]
        lasts_bd = states_td[torch.stack([path[-1] for path in paths]).to(states_td.device)]
        seen = [(0, torch.cat([before_k, pack.shared + path])) for path in paths]
        return self._begin(lines, lasts_bd, cached_kv, seen)

    def _enter_batch(self) -> Answers:
        """Prompts that share nothing."""
        longest = len(self._alone[-1].ids)
        lines = self._alone[-min(self._budget.rows(longest), self._slots.free) :][::-1]
        del self._alone[-len(lines) :]
        states_btd, cached_kv = self._network.rows([line.ids for line in lines], keep=True)
        lasts_bd = torch.stack([row_td[len(line.ids) - 1] for row_td, line in zip(states_btd, lines, strict=True)])
        seen = [(b, torch.arange(len(line.ids))) for b, line in enumerate(lines)]
        return self._begin(lines, lasts_bd, cached_kv, seen)

    def _begin(
        self, lines: Sequence[Line], lasts_bd: Tensor, cached: KeyValues, seen: Sequence[tuple[int, Tensor]]
    ) -> Answers:
        """Each prompt's first token; who needs more enters the slots. seen: row and keys of each prompt in `cached`."""
        rows = [self._rows[line.members[0]] for line in lines]
        ended: Answers = []
        for row, token, (source, at_k) in zip(rows, self._chosen(rows, lasts_bd), seen, strict=True):
            if row.take(token):
                ended.append(row)
            else:
                self._slots.enter(cached, source, at_k.to(lasts_bd.device))
                self._live.append((row, token))
        return ended

    def _step(self) -> Answers:
        """One more token for each live row."""
        ids_b = torch.tensor([token for _, token in self._live])
        place_b = torch.tensor(self._slots.lengths)
        cache, sees_btk, distance_tk = self._slots.step()
        states_btd = self._network.masked(ids_b[:, None], place_b[:, None], sees_btk, distance_tk, cache)
        rows = [row for row, _ in self._live]
        tokens = self._chosen(rows, states_btd[:, 0])
        self._live = list(zip(rows, tokens, strict=True))
        ended: Answers = []
        for place in reversed(range(len(rows))):
            if rows[place].take(tokens[place]):
                ended.append(rows[place])
                self._slots.leave(place)
                self._live[place] = self._live[-1]  # as in the slots: the last one takes its place
                self._live.pop()
        return ended

    def _chosen(self, rows: Sequence[Answering], states_bd: Tensor) -> list[int]:
        """Each row's next token; only a block of logits exists at a time."""
        tokens: list[int] = []
        for start in range(0, len(rows), self._network.block):
            block = slice(start, start + self._network.block)
            tokens += choose(rows[block], self._network.logits(states_bd[block]))
        return tokens
