"""A vision-language model that answers requests with images in their prompts.

Prompts run one at a time, because each model family pads images of different sizes in its own way. Continuations of
the same prompt (the option letters of a question) are scored in one pass.

Shape suffixes: t positions, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zerotune.common.errors import UserError
from zerotune.inference.images import Images
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.reasoning import without_partial_character
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored


class VisionModel:
    """Scores and continues prompts with images.

    Args:
        model: A transformers image-text-to-text model in evaluation mode.
        images: Its image processor.
    """

    def __init__(self, model: Any, images: Images) -> None:
        self.model, self.images, self.tokens = model, images, 0
        self.tokenizer = images.processor.tokenizer

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], budget: object = None) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the request, answer); `budget` is ignored, since each prompt is a batch of its own."""
        passes: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
        for k, request in enumerate(requests):
            if isinstance(request, Generate):
                yield k, self._generated(request)
            elif isinstance(request, Score):
                passes.setdefault((request.prefix_ids + request.continuation_ids[:-1], request.images), []).append(k)
        for (ids, files), own in passes.items():
            scores = {k: request for k in own if isinstance(request := requests[k], Score)}
            log_probs_tv = self._log_probs(ids, files, max(len(r.continuation_ids) for r in scores.values()))
            yield from ((k, _scored(request, log_probs_tv)) for k, request in scores.items())

    def _log_probs(self, ids: Sequence[int], files: Sequence[str], count: int) -> Tensor:
        """log p, in fp32, of every token of the vocabulary after each of the last `count` tokens of `ids`."""
        out = self.model(**self._inputs(ids, files), use_cache=False, logits_to_keep=count)
        self.tokens += len(ids)
        logits_tv: Tensor = out.logits[0, -count:].float().cpu()
        return logits_tv - logits_tv.logsumexp(-1, keepdim=True)

    def _generated(self, request: Generate) -> Generated:
        if request.temperature:
            raise UserError("vision-language models only generate greedily: set the temperature to 0")
        out = self.model.generate(
            **self._inputs(request.prefix_ids, request.images),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=list(request.stop_ids) or None,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            **({"stop_strings": list(request.stop_texts), "tokenizer": self.tokenizer} if request.stop_texts else {}),
        )
        ids = out[0, len(request.prefix_ids) :].tolist()
        self.tokens += out.shape[1] - 1  # the last token is not fed back
        end = next((k for k, token in enumerate(ids) if token in request.stop_ids), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        cuts = [text.find(stop) for stop in request.stop_texts if stop in text]
        finished = end is not None or bool(cuts)
        text = text[: min(cuts, default=None)]
        return Generated(text if finished else without_partial_character(text), len(ids[:end]), finished)

    def _inputs(self, ids: Sequence[int], files: Sequence[str]) -> dict[str, Tensor]:
        inputs = self.images.inputs(ids, files)
        moved = {name: value.to(self.model.device) for name, value in inputs.items()}
        return {name: v.to(self.model.dtype) if v.is_floating_point() else v for name, v in moved.items()}


def _scored(request: Score, log_probs_tv: Tensor) -> Scored:
    ids = request.continuation_ids
    own_tv = log_probs_tv[-len(ids) :]
    log_prob = float(own_tv[torch.arange(len(ids)), torch.tensor(ids)].double().sum())
    require_finite(math.isfinite(log_prob))
    return Scored(log_prob, len(ids), request.bytes, greedy=own_tv.argmax(-1).tolist() == list(ids))
