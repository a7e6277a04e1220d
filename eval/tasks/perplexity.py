"""Perplexity of texts, or of the responses in conversations given their prompts; every token is scored once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.metrics.perplexity import (
    BITS_PER_BYTE,
    LARGEST_EXPONENT,
    PERPLEXITY,
    PERPLEXITY_PER_WORD,
    other_tokens,
    perplexity_of,
    windows,
)
from eval.metrics.word_frequencies import divergence, frequencies, shifts
from eval.metrics.writing_system import words
from eval.protocols import Sample, SampleMetric, Table, Task
from zerotune.common import metric_format
from zerotune.data.conversations import said_in
from zerotune.data.fields import RowError
from zerotune.data.hub import Hub
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.inference.prompt import Passage, Prompter

SHOWN_WORDS = 20


def check(example: Example) -> Example:
    """Accept texts, and conversations with an assistant turn."""
    if example.text is None and not example.turns:
        raise RowError("the conversation has no assistant message after another one to score")
    return example


def passages(example: Example, prompter: Prompter) -> list[Passage]:
    """The text, or each response after what comes before it."""
    if example.text is not None:
        return [prompter.document(example.text)]
    return prompter.assistant_turns(example.messages, example.tools)


def texts_of(example: Example) -> list[str]:
    """The same as texts, without what comes before."""
    return [said_in(example.messages[k]) for k in example.turns] if example.text is None else [example.text]


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """One request for the text or for each response; several if it is longer than the context."""
    requests = []
    for passage in passages(example, prompter):
        size = prompter.window_tokens or len(passage.ids)
        count = passage.bytes  # the first window of the passage carries all its bytes
        for start, scored_from, end in windows(len(passage.ids), passage.first, size, max(size // 2, 1)):
            scored = passage.ids[scored_from:end]
            unknown_id = prompter.unknown_id if prompter.unknown_id in scored else None
            requests.append(Score(passage.ids[start:scored_from], scored, count, unknown_id=unknown_id))
            count = 0
    return requests


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """The sums of a row, and its own perplexity."""
    scored = [answer for answer in answers if isinstance(answer, Scored)]
    nll, tokens = -math.fsum(a.log_prob for a in scored), sum(a.tokens for a in scored)
    texts = texts_of(example)
    values = {
        "nll": nll,
        "tokens": float(tokens),
        "words": float(max(sum(len(words(text)) for text in texts), 1)),  # at least one, so that the ratio is defined
        "bytes": float(sum(a.bytes for a in scored)),
        "unknown": float(sum(a.unknown for a in scored)),
        "unknown_nll": -math.fsum(a.unknown_log_prob for a in scored),
        "sentence_perplexity": math.exp(min(nll / max(tokens, 1), LARGEST_EXPONENT)),
    }
    return Sample(
        example.id, values, _question(example) | {"text": texts[-1]}, {"corpus": example.id.rpartition(":")[0]}
    )


def _question(example: Example) -> dict[str, str]:
    """The last user message before the last response, if there is one."""
    before = example.messages[: example.turns[-1]] if example.turns else ()
    prompts = [message["content"] for message in before if message["role"] == "user"]
    return {"question": prompts[-1]} if prompts else {}


def tables(samples: Sequence[Sample]) -> Sequence[Table]:
    """Differences in word frequency between the first corpus and each other one, and unknown words."""
    corpora: dict[str, list[Sample]] = {}
    for sample in samples:
        corpora.setdefault(sample.groups["corpus"], []).append(sample)
    texts = {name: [str(sample.shown["text"]) for sample in own] for name, own in corpora.items()}
    first, *others = texts
    has_unknown = any(sample.values["unknown"] for sample in samples)
    return [_shift(first, other, texts) for other in others] + ([_unknown(corpora)] if has_unknown else [])


def _unknown(corpora: Mapping[str, Sequence[Sample]]) -> Table:
    """How many of the scored tokens are unknown, and the perplexity of the others."""
    rows: list[tuple[str | float, ...]] = []
    for name, samples in corpora.items():
        nll, tokens, unknown_nll, unknown = (
            math.fsum(sample.values[key] for sample in samples) for key in ("nll", "tokens", "unknown_nll", "unknown")
        )
        known = perplexity_of((nll - unknown_nll) / (tokens - unknown)) if tokens > unknown else ""
        rows.append((name, unknown / tokens, perplexity_of(nll / tokens), known))
    return Table(
        "Unknown words: <unk> (also <NUM>, a number read as a value) is easier to predict than what it stands for, so "
        "perplexity looks too good",
        ("corpus", "share of <unk>", "perplexity", "perplexity without <unk>"),
        rows,
        shares=(1,),
        in_summary=True,
    )


def _shift(first: str, other: str, texts: dict[str, list[str]]) -> Table:
    found = shifts(frequencies(texts[first]), frequencies(texts[other]))
    apart = f"Jensen-Shannon divergence {divergence(found):.3f} bits (0: the same words, 1: none in common)"
    return Table(
        f"Words of {other} against {first}: {apart}",
        ("word", f"share in {first}", f"share in {other}", "bits"),
        [(shift.word, shift.first, shift.second, shift.bits) for shift in found[:SHOWN_WORDS]],
        shares=(1, 2),
        pairs=True,
        of_data=True,
    )


TASK = Task(
    name="perplexity",
    version=4,
    about="perplexity and bits per byte of texts, or of responses given their prompts",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(
        PERPLEXITY,
        BITS_PER_BYTE,
        PERPLEXITY_PER_WORD,
        SampleMetric("sentence_perplexity", False, scale=metric_format.PERPLEXITY, incomparable=other_tokens),
    ),
    tables=tables,
    source=Hub(
        "EleutherAI/wikitext_document_level",
        split="test",
        name="wikitext-2-raw-v1",
        files="{name}/{name}-{split}.parquet",
        columns={"text": "page"},
    ),
)
