"""The way from a configuration to results: look at everything, ask, answer, score, compare."""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from eval.cached_model import Speaker
from eval.compare import compare, corrected, outcomes
from eval.config import Config
from eval.contamination import Overlaps, TrainingData, find_overlaps, texts_by_id, training_data, with_contamination
from eval.encoder import by_meaning, describe
from eval.names import of_files
from eval.names import of_models as names_of
from eval.protocols import Identified, Sample, Task
from eval.ranks import Ranks
from eval.result import Evaluation, Fewer, ModelInfo, Result, Skipped, TaskResult
from eval.subsample import choose, fewer
from eval.tasks.find import find, is_file
from zerotune.common.errors import UserError
from zerotune.common.files import sha256_files
from zerotune.common.host_memory import keep_freed_memory
from zerotune.common.version import code_state, own_version, versions
from zerotune.data.file_options import DEFAULT
from zerotune.data.files import BadRow, Row, expand
from zerotune.data.hub import Hub, from_hub
from zerotune.data.rows import load, local
from zerotune.inference.answer_cache import Journal
from zerotune.inference.checkpoint import Checkpoint, look
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Generate, Generated, Request
from zerotune.models.precision import choose_precision
from zerotune.models.run_facts import origin_of

# What numbers may depend on; not all need be installed.
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "numpy", "bitsandbytes"),
    *("sacrebleu", "rouge-score", "rouge-chinese", "jieba"),
)


@dataclass(frozen=True)
class Job:
    """One task for one checkpoint: the requests of each item, or why it cannot be asked."""

    task: Task[Any]
    items: Sequence[Any]
    prompter: Prompter
    asked: Sequence[Sequence[Request] | str]


@dataclass(frozen=True)
class Run:
    """A job done. cut_short: rows whose answers the context had no room for; only_reasoning: rows with an answer that
    ended within its reasoning. For the rest see `TaskResult`.
    """

    samples: Sequence[Sample]
    cut_short: Sequence[str]
    only_reasoning: Sequence[str]
    seconds: float
    tokens: int
    reused: int


def evaluate(config: Config, ranks: Ranks, notes: Journal | None = None) -> Evaluation:
    """Every task for every checkpoint, compared; complete on every rank; contamination on the first.

    notes: what was answered before, and where new answers are kept; without it they are asked anew and kept nowhere.

    Raises UserError for whatever is wrong with folders, rows or templates before any weights are loaded.
    """
    if ranks.index or not sys.stderr.isatty():
        logging.disable_progress_bar()  # transformers' own, while weights are loaded
    code = code_state(Path(__file__).parent)  # now: files may change while this runs
    names = names_of(config.folders)
    checkpoints = [look(folder, name) for folder, name in zip(config.folders, names, strict=True)]
    if ranks.device.type == "cpu":
        keep_freed_memory()
    notes = notes or Journal()
    tasks = by_meaning(config.chosen_tasks, config.encoder, ranks.device)
    training = training_data(config.training_data, [checkpoint.folder for checkpoint in checkpoints])
    for checkpoint in checkpoints:
        checkpoint.require(task.head for task in tasks)
    read = {task.name: read_items(task, config) for task in tasks}
    items = {name: choose(own, config.max_rows, config.sample_seed) for name, own in read.items()}
    less = {name: fewer(own, items[name]) for name, own in read.items()}
    del read
    jobs = {
        checkpoint.name: [prepare(task, items[task.name], _prompter(checkpoint, task, config, day)) for task in tasks]
        for checkpoint, day in zip(checkpoints, _days(checkpoints, config, notes.begun), strict=True)
    }
    for checkpoint in checkpoints:
        _check_template(checkpoint, jobs[checkpoint.name], config)
    wanted = ranks.index == 0 and (training.files or training.missing)
    overlaps = _overlaps(training, items, config) if wanted else None
    skipped = {task.name: _skipped(task, [jobs[name][k] for name in jobs]) for k, task in enumerate(tasks)}
    digests = ranks.share({c.name: c.digests() for c in checkpoints} if ranks.index == 0 else {})
    encoder = ranks.share(describe(config.encoder) if config.encoder and ranks.index == 0 else None)
    runs: dict[str, dict[str, Run]] = {task.name: {} for task in tasks}
    for checkpoint, head in [(c, head) for c in checkpoints for head in dict.fromkeys(task.head for task in tasks)]:
        speaker = Speaker(checkpoint, head, config, ranks, notes, digests[checkpoint.name])
        for job in jobs[checkpoint.name]:
            if job.task.head == head:
                runs[job.task.name][checkpoint.name] = _run(speaker, job, skipped[job.task.name])
        del speaker
        gc.collect()  # before the next one is loaded: two at once may not fit
    samples = {task: {name: run.samples for name, run in own.items()} for task, own in runs.items()}
    results = [
        _task_result(task, config, runs[task.name], _rows(items[task.name], skipped[task.name]), less[task.name])
        for task in tasks
    ]
    if overlaps is not None:
        results = [
            with_contamination(result, task.metrics, samples[task.name], overlaps)
            for task, result in zip(tasks, results, strict=True)
        ]
    won = {task.name: outcomes(task.metrics, samples[task.name]) for task in tasks}
    told = {name: next((day for job in own if (day := job.prompter.told_day)), None) for name, own in jobs.items()}
    result = _result(config, ranks, checkpoints, digests, told, encoder, corrected(results), code)
    return Evaluation(result, samples, won)


def read_items(task: Task[Any], config: Config) -> list[Any]:
    """All that a task could ask: of the user's file, or of the task's own source. Raises UserError for bad rows."""
    items = task.arrange(load(rows_of(task, config), task.load))
    if not items:
        raise UserError(f"{', '.join(_files(task, config)) or task.name}: there are no rows in it")
    return items


def rows_of(task: Task[Any], config: Config) -> Iterable[Row | BadRow]:
    """The rows of the user's file, or of the task's own source."""
    if files := _files(task, config):
        return local(*files, options=config.file_options if config.data_of(task.name) else DEFAULT)
    return from_hub(task.source) if isinstance(task.source, Hub) else _built_in(task)


def _files(task: Task[Any], config: Config) -> list[str]:
    """Files, folders and globs: the user's, or the task's own; none where its rows come from elsewhere."""
    return config.data_of(task.name) or ([task.source] if isinstance(task.source, str) else [])


def _built_in(task: Task[Any]) -> tuple[Row, ...]:
    assert isinstance(task.source, tuple)  # `parse` has refused a task without any
    return task.source


def prepare(task: Task[Any], items: Sequence[Any], prompter: Prompter) -> Job:
    """Every item's requests. An item that the context cannot take is not cut: it is set aside, with the reason."""
    items = [task.bind(item, prompter) for item in items] if task.bind else items
    return Job(
        task, items, prompter, [_asked(_requests(task, item, prompter), prompter.context_tokens) for item in items]
    )


def _requests(task: Task[Any], item: Identified, prompter: Prompter) -> Sequence[Request]:
    try:
        return task.ask(item, prompter)
    except UserError as error:
        raise UserError(f"{item.id}: {error}") from error


def _prompter(checkpoint: Checkpoint, task: Task[Any], config: Config, day: date) -> Prompter:
    limit = config.max_new_tokens or task.max_new_tokens
    return checkpoint.prompter(config.template, limit, config.window_tokens, day)


def _days(checkpoints: Sequence[Checkpoint], config: Config, begun: date) -> list[date]:
    """What the chat template of each checkpoint is told where it reads the clock: --date, or the day of its own run.

    One from elsewhere is told what the first of the others is, so that both are asked the same; or the day on which
    the evaluation began.
    """
    given = date.fromisoformat(config.date) if config.date else None
    known = [checkpoint.run_day for checkpoint in checkpoints]
    other = next((day for day in known if day), begun)
    return [given or day or other for day in known]


def _asked(requests: Sequence[Request], context_tokens: int | None) -> Sequence[Request] | str:
    if not requests:
        return "there is nothing in it to be scored"
    limit = context_tokens or sys.maxsize
    needed = max(_within(request, len(request.prefix_ids) + 1).slots for request in requests)
    if needed > limit:
        return f"it needs {needed} tokens; the context holds {limit}"
    return [_within(request, limit) for request in requests]


def _within(request: Request, limit: int) -> Request:
    """An answer can be no longer than the context that its prompt leaves."""
    if not isinstance(request, Generate):
        return request
    return dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, limit - len(request.prefix_ids)))


def _skipped(task: Task[Any], jobs: Sequence[Job]) -> dict[int, str]:
    """Items that some checkpoint cannot be asked: left out for all, so that all are compared on the same rows."""
    reasons: dict[int, str] = {}
    for job in jobs:
        reasons |= {k: asked for k, asked in enumerate(job.asked) if isinstance(asked, str)}
    if len(reasons) == len(jobs[0].items):
        raise UserError(f"task {task.name}: no row can be asked: {next(iter(reasons.values()))}")
    return reasons


def _rows(items: Sequence[Identified], skipped: Mapping[int, str]) -> list[Skipped]:
    return [Skipped(items[k].id, reason) for k, reason in sorted(skipped.items())]


def _check_template(checkpoint: Checkpoint, jobs: Sequence[Job], config: Config) -> None:
    used = [job.prompter for job in jobs if job.prompter.wrote_conversations]
    if used and not config.allow_other_template:
        checkpoint.require_template(used[0].template, config.template)


def _run(speaker: Speaker, job: Job, skipped: Mapping[int, str]) -> Run:
    """Ask, answer, score."""
    start, tokens, reused, loading = time.perf_counter(), speaker.tokens, speaker.reused, speaker.loading_seconds
    answers, cut_short = _answered(speaker, job, skipped)
    scored = [_with_reasoning(job.task.score(job.items[k], own), own) for k, own in answers.items()]
    thinking = [job.items[k].id for k, own in answers.items() if any(getattr(a, "only_reasoning", False) for a in own)]
    samples = with_short_corpora(scored)
    seconds = time.perf_counter() - start - (speaker.loading_seconds - loading)
    return Run(samples, cut_short, thinking, round(seconds, 3), speaker.tokens - tokens, speaker.reused - reused)


def _with_reasoning(sample: Sample, answers: Sequence[Answer]) -> Sample:
    """What was set aside is shown beside what was scored."""
    thoughts = [answer.reasoning for answer in answers if isinstance(answer, Generated) and answer.reasoning]
    if not thoughts:
        return sample
    return dataclasses.replace(sample, shown={**sample.shown, "reasoning": "\n\n".join(thoughts)})


def with_short_corpora(samples: Sequence[Sample]) -> list[Sample]:
    """The same with each corpus (a file) under its shortest telling name."""
    files = list(dict.fromkeys(sample.groups["corpus"] for sample in samples if "corpus" in sample.groups))
    names = dict(zip(files, of_files(files), strict=True))
    return [
        dataclasses.replace(sample, groups={**sample.groups, "corpus": names[sample.groups["corpus"]]})
        if "corpus" in sample.groups
        else sample
        for sample in samples
    ]


def _answered(speaker: Speaker, job: Job, skipped: Mapping[int, str]) -> tuple[dict[int, list[Answer]], list[str]]:
    """The answers of each item, and the ids of rows that would or might have gone on, had the context had room."""
    asked = {k: requests for k, requests in enumerate(job.asked) if k not in skipped and not isinstance(requests, str)}
    answers: dict[int, list[Answer]] = {k: [] for k in asked}
    cut_short: dict[str, None] = {}
    while asked:  # a round asks what the answers so far make possible: one round, where a task has no `follow`
        found = speaker.answers([request for own in asked.values() for request in own], job.task.name)
        for k, own in asked.items():
            said = [next(found) for _ in own]
            answers[k] += said
            if any(_fills(job.prompter.context_tokens, *pair) for pair in zip(own, said, strict=True)):
                cut_short[job.items[k].id] = None
        more = {k: _follow(job, k, answers[k]) for k in asked}
        cut_short |= {job.items[k].id: None for k, requests in more.items() if requests is None}
        asked = {k: requests for k, requests in more.items() if requests}
    return answers, list(cut_short)


def _fills(context_tokens: int | None, request: Request, answer: Answer) -> bool:
    """Whether a generated answer goes on to the context's end without having come to its own."""
    if not isinstance(answer, Generated) or answer.finished:
        return False
    return len(request.prefix_ids) + answer.tokens == context_tokens


def _follow(job: Job, item: int, answers: Sequence[Answer]) -> Sequence[Request] | None:
    """An item's next requests; None where they would be longer than the context."""
    if job.task.follow is None:
        return ()
    requests = job.task.follow(job.items[item], answers, job.prompter)
    fitting = _asked(requests, job.prompter.context_tokens) if requests else ()
    return None if isinstance(fitting, str) else fitting


def _task_result(
    task: Task[Any],
    config: Config,
    runs: Mapping[str, Run],
    skipped: Sequence[Skipped],
    less: Fewer | None,
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
        fewer=less,
    )


def _overlaps(training: TrainingData, items: Mapping[str, Sequence[Identified]], config: Config) -> Overlaps:
    """The rows of each task that stand in the training data."""
    tasks = {task.name: task for task in config.chosen_tasks}
    texts = {name: texts_by_id(rows_of(tasks[name], config), (item.id for item in own)) for name, own in items.items()}
    return find_overlaps(training, texts)


def _data(task: Task[Any], config: Config) -> dict[str, str]:
    files = _files(task, config)
    described = [Path(word) for word in config.task_words if is_file(word) and find(word) is task]
    source = None if files else task.source
    elsewhere = {f"hub:{source.path}": source.revision or "newest"} if isinstance(source, Hub) else {}
    paths = [*expand(*files), *described]
    return elsewhere | dict(zip(map(str, paths), sha256_files(paths), strict=True))


def _result(
    config: Config,
    ranks: Ranks,
    checkpoints: Sequence[Checkpoint],
    digests: Mapping[str, Mapping[str, str]],
    told: Mapping[str, date | None],
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
            origin=origin_of(c.folder),
            template_date=day.isoformat() if (day := told[c.name]) else None,
        )
        for c in checkpoints
    ]
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    settings = dataclasses.asdict(config) | {"device": device, "ranks": ranks.count}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"zerotune": number} if (number := own_version()) else {}
    return Result(now, settings, own | versions(LIBRARIES), models, tasks, encoder, code)
