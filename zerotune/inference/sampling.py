"""Samples the next token of each row and decides when its answer is finished.

Nothing here depends on the rest of the batch: randomness is a function of (seed, prompt, position).

Shape suffixes: b rows, v vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zerotune.data.number_tokens import with_spellings
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.reasoning import closing_mark, cut_at_stop, decode, without_partial_character
from zerotune.inference.requests import Generate, Generated


class GenerationState:
    """One request and the tokens generated for it so far. tokenizer: decodes them."""

    def __init__(self, index: int, request: Generate, tokenizer: Any) -> None:
        self.index, self.request = index, request
        self.ids: list[int] = []
        self.intervals: list[float] = []  # see `Generated`
        self._tokenizer = tokenizer
        self.end: int | None = None  # the stop token that ended it, which is not in `ids`
        self._finished = False
        self._text: str | None = None
        # A token is at least one byte, so a stop text that the last token completes lies within so many tokens.
        self._tail = max((len(text.encode()) for text in request.stop_texts), default=0) + 1
        self._hash = hashlib.blake2b(np.asarray(request.prefix_ids, dtype=np.int64).tobytes(), digest_size=8)
        self._hash.update(request.seed.to_bytes(8, "little", signed=True))

    @property
    def length(self) -> int:
        """Token positions of the prompt and the answer so far."""
        return len(self.request.prefix_ids) + len(self.ids)

    def random_number(self) -> float:
        """The number between 0 and 1 that selects the next token."""
        digest = self._hash.copy()
        digest.update(len(self.ids).to_bytes(8, "little"))
        return (int.from_bytes(digest.digest(), "little") + 0.5) / 2.0**64

    def random_numbers(self, count: int) -> NDArray[np.float64]:
        """Numbers between 0 and 1 for the next position."""
        digest = self._hash.copy()
        digest.update(len(self.ids).to_bytes(8, "little"))
        return np.random.default_rng(int.from_bytes(digest.digest(), "little")).uniform(2.0**-60, 1.0, count)

    def append(self, token: int) -> bool:
        """Add the next token. Returns whether the answer is finished."""
        if token in self.request.stop_ids:
            self.end, self._finished = token, True
            return True
        self.ids.append(token)
        tail = self._decode(self.ids[-self._tail :]) if self.request.stop_texts else ""
        if any(stop in tail for stop in self.request.stop_texts):
            closing = closing_mark(self._tokenizer, self.request.prefix_ids)
            self._text = cut_at_stop(self._decode(self.ids), self.request.stop_texts, closing)
            if self._text is not None:
                self._finished = True
                return True
        return len(self.ids) >= self.request.max_new_tokens

    @property
    def finished(self) -> bool:
        """Whether it ended with a stop token or stop text, not at the length limit."""
        return self._finished

    def answer(self) -> Generated:
        """The answer to the request."""
        text = self._decode(self.ids) if self._text is None else self._text
        whole = text if self._finished else without_partial_character(text)
        return Generated(whole, len(self.ids), self._finished, intervals=tuple(self.intervals))

    def _decode(self, ids: Sequence[int]) -> str:
        return with_spellings(ids, self._tokenizer, lambda tokens: decode(self._tokenizer, tokens))


def sample(rows: Sequence[GenerationState], logits_bv: Tensor) -> list[int]:
    """The next token of each row: the most probable one, or one sampled at the row's temperature."""
    best_b, token_b = logits_bv.max(-1)  # the maximum of logits with a NaN is NaN
    require_finite(bool(best_b.isfinite().all()))
    sampled = [b for b, row in enumerate(rows) if row.request.temperature > 0]
    if sampled:
        settings = [(rows[b].request.temperature, rows[b].random_number()) for b in sampled]
        temperature_b, random_b = torch.tensor(settings, dtype=torch.float64, device=logits_bv.device).T
        scores_bv = logits_bv[sampled].double()
        scores_bv -= scores_bv.amax(-1, keepdim=True)  # else a temperature near 0 makes them infinite
        scores_bv /= temperature_b[:, None]
        for b, row in enumerate(sampled):
            _apply_top_k_and_top_p(scores_bv[b], rows[row].request)
        cumulative_bv = scores_bv.softmax(-1).cumsum(-1)
        index_b = torch.searchsorted(cumulative_bv, (random_b * cumulative_bv[:, -1])[:, None])[:, 0]
        token_b[sampled] = index_b.clamp(max=logits_bv.shape[1] - 1)
    tokens: list[int] = token_b.tolist()
    return tokens


def _apply_top_k_and_top_p(scores_v: Tensor, request: Generate) -> None:
    """Exclude, in place, all but the `top_k` most probable tokens and the smallest set with probability `top_p`."""
    if request.top_k:
        least = scores_v.topk(min(request.top_k, len(scores_v))).values[-1]
        scores_v[scores_v < least] = -torch.inf
    if request.top_p < 1:
        sorted_v, order_v = scores_v.softmax(-1).sort(descending=True)
        beyond_v = sorted_v.cumsum(-1) - sorted_v >= request.top_p
        scores_v[order_v[beyond_v]] = -torch.inf
