"""Perplexity of texts, or of the answers in instruction rows given their questions; exact to the token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.metrics.perplexity import bits_per_byte, perplexity, windows
from eval.protocols import Answer, CorpusMetric, Request, Sample, Score, Scored, Task
from eval.rows import BadExampleError, Example, examples

if TYPE_CHECKING:
    from eval.prompt import Prompter


def check(example: Example) -> Example:
    """Texts, and conversations in which the assistant says something."""
    if example.text is None and not any(message["role"] == "assistant" for message in example.messages):
        raise BadExampleError("there is no answer whose perplexity could be measured")
    return example


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """One request for the text or for each answer; more where it is longer than the model's context."""
    document = example.text is not None
    requests = []
    for passage in [prompter.document(example.text or "")] if document else prompter.answers(example.messages):
        size = prompter.window_tokens or len(passage.ids)
        unclaimed = passage.bytes  # the bytes belong to the passage; its first window carries them
        for start, scored_from, end in windows(len(passage.ids), passage.first, size, max(size // 2, 1)):
            requests.append(Score(passage.ids[start:scored_from], passage.ids[scored_from:end], unclaimed))
            unclaimed = 0
    return requests


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Sums over the row; its own perplexity is shown beside them."""
    scored = [answer for answer in answers if isinstance(answer, Scored)]
    nll, tokens = -math.fsum(a.log_prob for a in scored), sum(a.tokens for a in scored)
    values = {"nll": nll, "tokens": float(tokens), "bytes": float(sum(a.bytes for a in scored))}
    text = example.text if example.text is not None else example.messages[-1]["content"]
    return Sample(example.id, values, {"text": text, "perplexity": math.exp(min(nll / max(tokens, 1), 700.0))})


TASK = Task(
    name="perplexity",
    version=1,
    about="perplexity and bits per byte of texts, or of answers given their questions",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(
        CorpusMetric("perplexity", higher_is_better=False, of=perplexity, of_sums=True),
        CorpusMetric("bits_per_byte", higher_is_better=False, of=bits_per_byte, of_sums=True),
    ),
)
