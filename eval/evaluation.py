"""Runs an evaluation: validate inputs, build requests, answer them, score, compare."""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from eval.cached_model import CachedModel
from eval.compare import compare, outcomes, with_holm_correction
from eval.config import Config
from eval.contamination import Overlaps, TrainingData, find_overlaps, texts_by_id, training_data, with_contamination
from eval.distributed import Ranks
from eval.encoder import add_semantic_scores, describe
from eval.names import file_names, model_names
from eval.protocols import Identified, Sample, Task
from eval.result import Evaluation, ModelInfo, Result, Skipped, Subsample, TaskResult
from eval.subsample import describe_subsample, take_subsample
from eval.tasks.lookup import find, is_file
from zerotune.common.errors import UserError
from zerotune.common.files import sha256_files
from zerotune.common.host_memory import keep_freed_memory
from zerotune.common.version import code_state, own_version, versions
from zerotune.data.file_options import DEFAULT
from zerotune.data.files import BadRow, Row, expand
from zerotune.data.hub import Hub, from_hub
from zerotune.data.rows import load, local
from zerotune.inference.answer_cache import AnswerCache
from zerotune.inference.checkpoint import Checkpoint, open_checkpoint
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Generate, Generated, Request
from zerotune.models.precision import choose_precision
from zerotune.models.run_facts import read_run_facts

# Libraries on which results may depend; some are optional.
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "numpy", "bitsandbytes"),
    *("sacrebleu", "rouge-score", "rouge-chinese", "jieba"),
)


@dataclass(frozen=True)
class Job:
    """One task for one checkpoint. requests: of each item, or the reason why the item is skipped."""

    task: Task[Any]
    items: Sequence[Any]
    prompter: Prompter
    requests: Sequence[Sequence[Request] | str]


@dataclass(frozen=True)
class JobResult:
    """The samples of a job. For the other fields see `TaskResult`."""

    samples: Sequence[Sample]
    cut_short: Sequence[str]
    only_reasoning: Sequence[str]
    seconds: float
    tokens: int
    reused: int


def evaluate(config: Config, ranks: Ranks, cache: AnswerCache | None = None) -> Evaluation:
    """Run every task on every checkpoint and compare them.

    The result is complete on every rank, except for contamination, which only the first rank has. cache: earlier
    answers, and where new ones are stored; default: neither is read nor stored.

    Raises UserError for problems with folders, rows or templates, before any weights are loaded.
    """
    if ranks.index or not sys.stderr.isatty():
        logging.disable_progress_bar()  # of transformers, while it loads weights
    code = code_state(Path(__file__).parent)  # read first: files may change during the evaluation
    names = model_names(config.folders)
    checkpoints = [open_checkpoint(folder, name) for folder, name in zip(config.folders, names, strict=True)]
    if ranks.device.type == "cpu":
        keep_freed_memory()
    cache = cache or AnswerCache()
    tasks = add_semantic_scores(config.chosen_tasks, config.encoder, ranks.device)
    training = training_data(config.training_data, [checkpoint.folder for checkpoint in checkpoints])
    for checkpoint in checkpoints:
        checkpoint.require(task.head for task in tasks)
    all_items = {task.name: read_items(task, config) for task in tasks}
    items = {name: take_subsample(own, config.max_rows, config.sample_seed) for name, own in all_items.items()}
    subsamples = {name: describe_subsample(own, items[name]) for name, own in all_items.items()}
    del all_items
    jobs = {
        checkpoint.name: [prepare(task, items[task.name], _prompter(checkpoint, task, config, day)) for task in tasks]
        for checkpoint, day in zip(checkpoints, _template_dates(checkpoints, config, cache.start_date), strict=True)
    }
    for checkpoint in checkpoints:
        _check_template(checkpoint, jobs[checkpoint.name], config)
    check_overlaps = ranks.index == 0 and (training.files or training.missing)
    overlaps = _overlaps(training, items, config) if check_overlaps else None
    skipped = {task.name: _skipped(task, [jobs[name][k] for name in jobs]) for k, task in enumerate(tasks)}
    digests = ranks.share({c.name: c.digests() for c in checkpoints} if ranks.index == 0 else {})
    encoder = ranks.share(describe(config.encoder) if config.encoder and ranks.index == 0 else None)
    runs: dict[str, dict[str, JobResult]] = {task.name: {} for task in tasks}
    for checkpoint, head in [(c, head) for c in checkpoints for head in dict.fromkeys(task.head for task in tasks)]:
        model = CachedModel(checkpoint, head, config, ranks, cache, digests[checkpoint.name])
        for job in jobs[checkpoint.name]:
            if job.task.head == head:
                runs[job.task.name][checkpoint.name] = _run(model, job, skipped[job.task.name])
        del model
        gc.collect()  # two models at once may not fit into memory
    samples = {task: {name: run.samples for name, run in own.items()} for task, own in runs.items()}
    results = [
        _task_result(task, config, runs[task.name], _rows(items[task.name], skipped[task.name]), subsamples[task.name])
        for task in tasks
    ]
    if overlaps is not None:
        results = [
            with_contamination(result, task.metrics, samples[task.name], overlaps)
            for task, result in zip(tasks, results, strict=True)
        ]
    won = {task.name: outcomes(task.metrics, samples[task.name]) for task in tasks}
    dates = {
        name: next((day for job in own if (day := job.prompter.template_date)), None) for name, own in jobs.items()
    }
    result = _result(config, ranks, checkpoints, digests, dates, encoder, with_holm_correction(results), code)
    return Evaluation(result, samples, won)


def read_items(task: Task[Any], config: Config) -> list[Any]:
    """All items of a task, from the user's files or the task's own source. Raises UserError for bad rows."""
    items = task.arrange(load(rows_of(task, config), task.load))
    if not items:
        raise UserError(f"{', '.join(_files(task, config)) or task.name}: contains no rows")
    return items


def rows_of(task: Task[Any], config: Config) -> Iterable[Row | BadRow]:
    """The rows of the user's files, or of the task's own source."""
    if files := _files(task, config):
        return local(*files, options=config.file_options if config.data_of(task.name) else DEFAULT)
    return from_hub(task.source) if isinstance(task.source, Hub) else _built_in(task)


def _files(task: Task[Any], config: Config) -> list[str]:
    """The files, folders and globs of a task, the user's or its own; empty if its rows come from elsewhere."""
    return config.data_of(task.name) or ([task.source] if isinstance(task.source, str) else [])


def _built_in(task: Task[Any]) -> tuple[Row, ...]:
    assert isinstance(task.source, tuple)  # `parse` rejects a task without a source
    return task.source


def prepare(task: Task[Any], items: Sequence[Any], prompter: Prompter) -> Job:
    """Build every item's requests. An item that exceeds the context is not truncated but skipped, with a reason."""
    items = [task.bind(item, prompter) for item in items] if task.bind else items
    requests = [_fit_to_context(_requests_of(task.ask, item, prompter), prompter.context_tokens) for item in items]
    return Job(task, items, prompter, requests)


def _requests_of(ask: Callable[..., Sequence[Request]], item: Identified, *arguments: Any) -> Sequence[Request]:
    """What a task asks of an item; an error names the row."""
    try:
        return ask(item, *arguments)
    except UserError as error:
        raise UserError(f"{item.id}: {error}") from error


def _prompter(checkpoint: Checkpoint, task: Task[Any], config: Config, day: date) -> Prompter:
    limit = config.max_new_tokens or task.max_new_tokens
    return checkpoint.prompter(config.template, limit, config.window_tokens, day)


def _template_dates(checkpoints: Sequence[Checkpoint], config: Config, start_date: date) -> list[date]:
    """The date for each checkpoint's chat template, if it reads the clock: --date, else the date of its training run.

    A checkpoint without a run gets the date of the first one that has a run, so that their prompts agree, else the
    evaluation's start date.
    """
    option = date.fromisoformat(config.date) if config.date else None
    dates = [checkpoint.template_date for checkpoint in checkpoints]
    default = next((day for day in dates if day), start_date)
    return [option or day or default for day in dates]


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


def _skipped(task: Task[Any], jobs: Sequence[Job]) -> dict[int, str]:
    """Items that do not fit some checkpoint; all checkpoints skip them, so that all are compared on the same rows."""
    reasons: dict[int, str] = {}
    for job in jobs:
        reasons |= {k: reason for k, reason in enumerate(job.requests) if isinstance(reason, str)}
    if len(reasons) == len(jobs[0].items):
        raise UserError(f"task {task.name}: all rows were skipped, the first because it {next(iter(reasons.values()))}")
    return reasons


def _rows(items: Sequence[Identified], skipped: Mapping[int, str]) -> list[Skipped]:
    return [Skipped(items[k].id, reason) for k, reason in sorted(skipped.items())]


def _check_template(checkpoint: Checkpoint, jobs: Sequence[Job], config: Config) -> None:
    used = [job.prompter for job in jobs if job.prompter.used_chat_template]
    if used and not config.allow_other_template:
        checkpoint.require_template(used[0].template, config.template)


def _run(model: CachedModel, job: Job, skipped: Mapping[int, str]) -> JobResult:
    """Answer and score the requests of a job."""
    start, tokens, reused, loading = (
        time.perf_counter(),
        model.tokens,
        model.reused,
        model.loading_seconds,
    )
    answers, cut_short = _answer(model, job, skipped)
    scored = [_with_reasoning(job.task.score(job.items[k], own), own) for k, own in answers.items()]
    thinking = [job.items[k].id for k, own in answers.items() if any(getattr(a, "only_reasoning", False) for a in own)]
    samples = with_short_corpus_names(scored)
    seconds = time.perf_counter() - start - (model.loading_seconds - loading)
    return JobResult(samples, cut_short, thinking, round(seconds, 3), model.tokens - tokens, model.reused - reused)


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


def _follow(job: Job, item: int, answers: Sequence[Answer]) -> Sequence[Request] | None:
    """An item's next requests; None if they exceed the context."""
    if job.task.follow is None:
        return ()
    requests = _requests_of(job.task.follow, job.items[item], answers, job.prompter)
    fitting = _fit_to_context(requests, job.prompter.context_tokens) if requests else ()
    return None if isinstance(fitting, str) else fitting


def _task_result(
    task: Task[Any],
    config: Config,
    runs: Mapping[str, JobResult],
    skipped: Sequence[Skipped],
    subsample: Subsample | None,
) -> TaskResult:
    samples = {name: run.samples for name, run in runs.items()}
    return TaskResult(
        name=task.name,
        version=task.version,
        data=_data(task, config),
        samples=len(next(iter(samples.values()))),
        skipped=skipped,
        metrics=compare(task.metrics, samples),
        tables={name: task.tables(own) for name, own in samples.items()} if task.tables else {},
        seconds={name: run.seconds for name, run in runs.items()},
        tokens={name: run.tokens for name, run in runs.items()},
        reused={name: run.reused for name, run in runs.items()},
        cut_short={name: run.cut_short for name, run in runs.items() if run.cut_short},
        only_reasoning={name: run.only_reasoning for name, run in runs.items() if run.only_reasoning},
        fewer=subsample,
    )


def _overlaps(training: TrainingData, items: Mapping[str, Sequence[Identified]], config: Config) -> Overlaps:
    """The rows of each task that occur in the training data."""
    tasks = {task.name: task for task in config.chosen_tasks}
    texts = {name: texts_by_id(rows_of(tasks[name], config), (item.id for item in own)) for name, own in items.items()}
    return find_overlaps(training, texts)


def _data(task: Task[Any], config: Config) -> dict[str, str]:
    files = _files(task, config)
    task_files = [Path(word) for word in config.task_words if is_file(word) and find(word) is task]
    source = None if files else task.source
    hub = {f"hub:{source.path}": source.revision or "newest"} if isinstance(source, Hub) else {}
    paths = [*expand(*files), *task_files]
    return hub | dict(zip(map(str, paths), sha256_files(paths), strict=True))


def _result(
    config: Config,
    ranks: Ranks,
    checkpoints: Sequence[Checkpoint],
    digests: Mapping[str, Mapping[str, str]],
    template_dates: Mapping[str, date | None],
    encoder: ModelInfo | None,
    tasks: Sequence[TaskResult],
    code: Mapping[str, Any] | None,
) -> Result:
    precision = choose_precision(config.precision, ranks.device.type == "cuda")
    models = [
        ModelInfo(
            name=c.name,
            path=str(c.folder),
            precision=precision,
            context_tokens=c.context_tokens,
            digests=digests[c.name],
            origin=read_run_facts(c.folder),
            template_date=day.isoformat() if (day := template_dates[c.name]) else None,
        )
        for c in checkpoints
    ]
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    settings = dataclasses.asdict(config) | {"device": device, "ranks": ranks.count}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"zerotune": number} if (number := own_version()) else {}
    return Result(now, settings, own | versions(LIBRARIES), models, tasks, encoder, code)
