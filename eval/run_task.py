"""Builds the requests of a task for one checkpoint, and turns the model's answers into samples."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.cached_model import CachedModel
from eval.names import file_names
from eval.protocols import Identified, Sample, Task
from zerotune.common.errors import UserError
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Generate, Generated, Request


@dataclass(frozen=True)
class Job:
    """One task for one checkpoint.

    requests: of each item, or the reason why the item is skipped.
    template_problems: what the chat template writes wrongly -> ids of the items; later requests may add to it.
    """

    task: Task[Any]
    items: Sequence[Any]
    prompter: Prompter
    requests: list[Sequence[Request] | str] = field(default_factory=list)
    template_problems: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """The samples of a job. For the other fields see `TaskResult`."""

    samples: Sequence[Sample]
    cut_short: Sequence[str]
    only_reasoning: Sequence[str]
    template_problems: Mapping[str, Sequence[str]]
    seconds: float
    tokens: int
    reused: int


def prepare(task: Task[Any], items: Sequence[Any], prompter: Prompter) -> Job:
    """Build every item's requests. An item that exceeds the context is not truncated but skipped, with a reason."""
    job = Job(task, [task.bind(item, prompter) for item in items] if task.bind else items, prompter)
    for item in job.items:
        job.requests.append(_fit_to_context(_requests_of(job, item, task.ask), prompter.context_tokens))
    return job


def _requests_of(job: Job, item: Identified, ask: Callable[..., Sequence[Request]], *answers: Any) -> Sequence[Request]:
    """What a task asks of an item; an error names the row."""
    try:
        requests = ask(item, *answers, job.prompter)
    except UserError as error:
        raise UserError(f"{item.id}: {error}") from error
    for problem in job.prompter.take_template_problems():
        job.template_problems.setdefault(problem, set()).add(item.id)
    return requests


def _fit_to_context(requests: Sequence[Request], context_tokens: int | None) -> Sequence[Request] | str:
    """The requests with `max_new_tokens` limited to the context, or the reason why they do not fit."""
    if not requests:
        return "has nothing to score"
    limit = context_tokens or sys.maxsize
    needed = max(_limit_length(request, len(request.prefix_ids) + 1).length for request in requests)
    if needed > limit:
        return f"needs {needed} tokens, more than the context of {limit}"
    return [_limit_length(request, limit) for request in requests]


def _limit_length(request: Request, limit: int) -> Request:
    if not isinstance(request, Generate):
        return request
    return dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, limit - len(request.prefix_ids)))


def run(model: CachedModel, job: Job, skipped: Mapping[int, str]) -> JobResult:
    """Answer and score the requests of a job."""
    start, tokens, reused, loading = time.perf_counter(), model.tokens, model.reused, model.loading_seconds
    answers, cut_short = _answer(model, job, skipped)
    ids = {k: job.items[k].id for k in answers}
    scored = [_with_reasoning(job.task.score(job.items[k], own), own) for k, own in answers.items()]
    seconds = time.perf_counter() - start - (model.loading_seconds - loading)
    return JobResult(
        samples=with_short_corpus_names(scored),
        cut_short=cut_short,
        only_reasoning=[ids[k] for k, own in answers.items() if any(getattr(a, "only_reasoning", False) for a in own)],
        template_problems={
            problem: rows
            for problem, affected in sorted(job.template_problems.items())
            if (rows := [row for row in ids.values() if row in affected])
        },
        seconds=round(seconds, 3),
        tokens=model.tokens - tokens,
        reused=model.reused - reused,
    )


def _with_reasoning(sample: Sample, answers: Sequence[Answer]) -> Sample:
    """Add the reasoning of the answers to what the report shows of a sample."""
    thoughts = [answer.reasoning for answer in answers if isinstance(answer, Generated) and answer.reasoning]
    if not thoughts:
        return sample
    return dataclasses.replace(sample, shown={**sample.shown, "reasoning": "\n\n".join(thoughts)})


def with_short_corpus_names(samples: Sequence[Sample]) -> list[Sample]:
    """Replace each corpus (a file) by its shortest unambiguous name."""
    files = list(dict.fromkeys(sample.groups["corpus"] for sample in samples if "corpus" in sample.groups))
    names = dict(zip(files, file_names(files), strict=True))
    return [
        dataclasses.replace(sample, groups={**sample.groups, "corpus": names[sample.groups["corpus"]]})
        if "corpus" in sample.groups
        else sample
        for sample in samples
    ]


def _answer(model: CachedModel, job: Job, skipped: Mapping[int, str]) -> tuple[dict[int, list[Answer]], list[str]]:
    """The answers of each item, and the ids of rows whose answers were cut short by the context."""
    pending = {k: own for k, own in enumerate(job.requests) if k not in skipped and not isinstance(own, str)}
    answers: dict[int, list[Answer]] = {k: [] for k in pending}
    cut_short: dict[str, None] = {}
    while pending:  # a task without `follow` has one round
        found = model.answers([request for own in pending.values() for request in own], job.task.name)
        for k, own in pending.items():
            new = [next(found) for _ in own]
            answers[k] += new
            if any(_fills_context(job.prompter.context_tokens, *pair) for pair in zip(own, new, strict=True)):
                cut_short[job.items[k].id] = None
        more = {k: _follow(job, k, answers[k]) for k in pending}
        cut_short |= {job.items[k].id: None for k, requests in more.items() if requests is None}
        pending = {k: requests for k, requests in more.items() if requests}
    return answers, list(cut_short)


def _fills_context(context_tokens: int | None, request: Request, answer: Answer) -> bool:
    """Whether a generated answer reached the end of the context unfinished."""
    if not isinstance(answer, Generated) or answer.finished:
        return False
    return len(request.prefix_ids) + answer.tokens == context_tokens


def _follow(job: Job, k: int, answers: Sequence[Answer]) -> Sequence[Request] | None:
    """An item's next requests; None if they exceed the context."""
    if job.task.follow is None:
        return ()
    requests = _requests_of(job, job.items[k], job.task.follow, answers)
    fitting = _fit_to_context(requests, job.prompter.context_tokens) if requests else ()
    return None if isinstance(fitting, str) else fitting
