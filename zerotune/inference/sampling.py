"""One answer while it is being generated: which token comes next, and when it ends.

Nothing here depends on what else is in the batch: randomness is a function of (seed, prompt, place).

Shape suffixes: b rows, v vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerotune.inference.finite import require_finite
from zerotune.inference.reasoning import closing_mark, decode, stopped, whole_letters
from zerotune.inference.requests import Generate, Generated


class Answering:
    """The tokens so far of one request's answer. tokenizer: turns them into text."""

    def __init__(self, index: int, request: Generate, tokenizer: Any) -> None:
        self.index, self.request = index, request
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self.end: int | None = None  # the stop token that ended it; it is not one of `ids`
        self._finished = False
        self._text: str | None = None
        # A token is at least a byte, so a stop text that has just been completed lies within so many tokens.
        self._tail = max((len(text.encode()) for text in request.stop_texts), default=0) + 1
        self._chance = hashlib.blake2b(np.asarray(request.prefix_ids, dtype=np.int64).tobytes(), digest_size=8)
        self._chance.update(request.seed.to_bytes(8, "little", signed=True))

    @property
    def slots(self) -> int:
        """Token positions that it has: prompt and answer so far."""
        return len(self.request.prefix_ids) + len(self.ids)

    def chance(self) -> float:
        """A number between 0 and 1 that decides which token comes next."""
        drawn = self._chance.copy()
        drawn.update(len(self.ids).to_bytes(8, "little"))
        return (int.from_bytes(drawn.digest(), "little") + 0.5) / 2.0**64

    def take(self, token: int) -> bool:
        """The next token; whether the answer has ended with it."""
        if token in self.request.stop_ids:
            self.end, self._finished = token, True
            return True
        self.ids.append(token)
        if self.request.stop_texts and self._stops_in(self._decode(self.ids[-self._tail :])):
            closing = closing_mark(self._tokenizer, self.request.prefix_ids)
            self._text = stopped(self._decode(self.ids), self.request.stop_texts, closing)
            if self._text is not None:
                self._finished = True
                return True
        return len(self.ids) >= self.request.max_new_tokens

    @property
    def finished(self) -> bool:
        """Whether it ended with a stop token or text, not by its length."""
        return self._finished

    def generated(self) -> Generated:
        """The answer."""
        text = self._decode(self.ids) if self._text is None else self._text
        return Generated(text if self._finished else whole_letters(text), len(self.ids), self._finished)

    def _stops_in(self, text: str) -> bool:
        return any(stop in text for stop in self.request.stop_texts)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids)


def choose(rows: Sequence[Answering], logits_bv: Tensor) -> list[int]:
    """The next token of each row: the most probable one, or one drawn at the row's temperature."""
    best_b, chosen_b = logits_bv.max(-1)  # NaN, where there is one
    require_finite(bool(best_b.isfinite().all()))
    drawn = [b for b, row in enumerate(rows) if row.request.temperature > 0]
    if drawn:
        settings = [(rows[b].request.temperature, rows[b].chance()) for b in drawn]
        temperature_b, chance_b = torch.tensor(settings, dtype=torch.float64, device=logits_bv.device).T
        scores_bv = logits_bv[drawn].double()
        scores_bv -= scores_bv.amax(-1, keepdim=True)  # else a temperature near 0 makes them infinite
        scores_bv /= temperature_b[:, None]
        for b, row in enumerate(drawn):
            _keep_likely(scores_bv[b], rows[row].request)
        below_bv = scores_bv.softmax(-1).cumsum(-1)
        token_b = torch.searchsorted(below_bv, (chance_b * below_bv[:, -1])[:, None])[:, 0]
        chosen_b[drawn] = token_b.clamp(max=logits_bv.shape[1] - 1)
    chosen: list[int] = chosen_b.tolist()
    return chosen


def _keep_likely(scores_v: Tensor, request: Generate) -> None:
    """Only the `top_k` most probable tokens, and of these the fewest that together have `top_p`, can be drawn."""
    if request.top_k:
        least = scores_v.topk(min(request.top_k, len(scores_v))).values[-1]
        scores_v[scores_v < least] = -torch.inf
    if request.top_p < 1:
        sorted_v, order_v = scores_v.softmax(-1).sort(descending=True)
        beyond_v = sorted_v.cumsum(-1) - sorted_v >= request.top_p
        scores_v[order_v[beyond_v]] = -torch.inf
