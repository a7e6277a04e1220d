"""A causal language model that answers `Score`, `Generate` and `Measure` requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zerotune.inference import generation, plain_generation
from zerotune.inference.batch_size import Budget
from zerotune.inference.causal_lm import Network
from zerotune.inference.number_reader import measure
from zerotune.inference.requests import Answer, Generate, Measure, Request, Score
from zerotune.inference.scoring import score


class LanguageModel:
    """Answers depend neither on the other requests nor on the budget.

    Args:
        model: A transformers causal language model in evaluation mode.
        tokenizer: Turns generated tokens into text.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = Network(model), tokenizer

    @property
    def tokens(self) -> int:
        """See zerotune.inference.runner.Model."""
        return self.network.tokens

    def answers(self, requests: Sequence[Request], budget: Budget) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the request, answer) for each request once, in any order (see `runner.Model`)."""
        scores = {k: request for k, request in enumerate(requests) if isinstance(request, Score)}
        indices = list(scores)
        for scored in score(self.network, list(scores.values()), budget):
            yield from ((indices[k], answer) for k, answer in scored)
        measures = {k: request for k, request in enumerate(requests) if isinstance(request, Measure)}
        indices = list(measures)
        for measured in measure(self.network, self.tokenizer, list(measures.values()), budget):
            yield from ((indices[k], answer) for k, answer in measured)
        generates = {k: request for k, request in enumerate(requests) if isinstance(request, Generate)}
        indices = list(generates)
        engine = generation if self.network.shares_prefixes else plain_generation
        for finished in engine.generate(self.network, self.tokenizer, list(generates.values()), budget):
            yield from ((indices[row.index], row.answer()) for row in finished)
