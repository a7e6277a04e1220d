"""The way from a configuration to results: look at everything, ask, answer, score, compare."""

from __future__ import annotations

import dataclasses
import gc
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from eval.checkpoint import Checkpoint, choose_precision, look
from eval.compare import compare
from eval.config import Config
from eval.errors import UserError
from eval.files import BadRow, Row, expand, sha256_file
from eval.hub import from_hub
from eval.prompt import Prompter
from eval.protocols import Answer, Generate, Hub, Identified, Request, Sample, Task
from eval.ranks import Ranks
from eval.result import Evaluation, ModelInfo, Result, Skipped, TaskResult
from eval.rows import load, local
from eval.runner import Model, answer
from eval.tasks import TASKS

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Job:
    """One task for one checkpoint: the requests of each item, or why it cannot be asked."""

    task: Task[Any]
    items: Sequence[Any]
    prompter: Prompter
    asked: Sequence[Sequence[Request] | str]


def evaluate(config: Config, ranks: Ranks) -> Evaluation:
    """Every task for every checkpoint, compared; complete on every rank, digests on the first.

    Raises UserError for whatever is wrong with folders, rows or templates before any weights are loaded.
    """
    if ranks.index or not sys.stderr.isatty():
        logging.disable_progress_bar()  # transformers' own, while weights are loaded
    names = unique_names(config.folders)
    checkpoints = [look(folder, name) for folder, name in zip(config.folders, names, strict=True)]
    tasks = [TASKS[name] for name in config.task_names]
    for checkpoint in checkpoints:
        checkpoint.require(task.head for task in tasks)
    items = {task.name: read_items(task, config) for task in tasks}
    jobs = {
        checkpoint.name: [prepare(task, items[task.name], _prompter(checkpoint, task, config)) for task in tasks]
        for checkpoint in checkpoints
    }
    skipped = {task.name: _skipped(task, [jobs[name][k] for name in jobs]) for k, task in enumerate(tasks)}
    samples: dict[str, dict[str, list[Sample]]] = {task.name: {} for task in tasks}
    seconds: dict[str, dict[str, float]] = {task.name: {} for task in tasks}
    for checkpoint, head in [(c, head) for c in checkpoints for head in dict.fromkeys(task.head for task in tasks)]:
        model = checkpoint.load(head, config.precision, ranks.device)
        for job in jobs[checkpoint.name]:
            if job.task.head == head:
                start = time.perf_counter()
                task, name = job.task.name, checkpoint.name
                samples[task][name] = _run(model, job, skipped[task], config, ranks, f"{name}: {task}")
                seconds[task][name] = round(time.perf_counter() - start, 3)
        del model
        gc.collect()  # before the next one is loaded: two at once may not fit
    results = [
        _task_result(task, config, samples[task.name], _rows(items[task.name], skipped[task.name]), seconds[task.name])
        for task in tasks
    ]
    return Evaluation(_result(config, ranks, checkpoints, results), samples)


def read_items(task: Task[Any], config: Config) -> list[Any]:
    """The items that a task asks: of the user's file, or of the task's own source. Raises UserError for bad rows."""
    path = config.data_of(task.name)
    if path is None and task.source is None:
        raise UserError(f"task {task.name} needs data: give --data FILE (or --data {task.name}=FILE)")
    items = task.arrange(load(_rows_of(task, path), task.load))
    if not items:
        raise UserError(f"{path or task.name}: there are no rows in it")
    if 0 < config.max_rows < len(items):
        if config.sample_seed is None:
            return items[: config.max_rows]
        shuffled = np.random.default_rng(config.sample_seed).permutation(len(items))  # as `datasets` shuffles
        return [items[k] for k in sorted(shuffled[: config.max_rows])]
    return items


def _rows_of(task: Task[Any], path: str | None) -> Iterable[Row | BadRow]:
    if path is not None:
        return local(path)
    return from_hub(task.source) if isinstance(task.source, Hub) else task.source or ()


def prepare(task: Task[Any], items: Sequence[Any], prompter: Prompter) -> Job:
    """Every item's requests. An item that the context cannot take is not cut: it is set aside, with the reason."""
    return Job(task, items, prompter, [_asked(task.ask(item, prompter), prompter.context_tokens) for item in items])


def unique_names(folders: Sequence[str]) -> list[str]:
    """For each folder as few of its last parts as tell it from the others; the same folder twice is numbered."""
    parts = [Path(folder).resolve().parts for folder in folders]
    names = []
    for index, own in enumerate(parts):
        others = [other for k, other in enumerate(parts) if k != index and other != own]
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        name, earlier = "/".join(own[-length:]), parts[:index].count(own)
        names.append(f"{name} #{earlier + 1}" if earlier else name)
    return names


def _prompter(checkpoint: Checkpoint, task: Task[Any], config: Config) -> Prompter:
    return checkpoint.prompter(config.template, config.max_new_tokens or task.max_new_tokens, config.window_tokens)


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


def _run(model: Model, job: Job, skipped: Mapping[int, str], config: Config, ranks: Ranks, title: str) -> list[Sample]:
    asked = {k: requests for k, requests in enumerate(job.asked) if k not in skipped and not isinstance(requests, str)}
    answers: dict[int, list[Answer]] = {k: [] for k in asked}
    while asked:  # a round asks what the answers so far make possible: one round, where a task has no `follow`
        found = iter(_answers(model, [request for own in asked.values() for request in own], config, ranks, title))
        for k, own in asked.items():
            answers[k] += [next(found) for _ in own]
        asked = {k: more for k in asked if (more := _follow(job, k, answers[k]))}
    return [job.task.score(job.items[k], own) for k, own in answers.items()]


def _answers(model: Model, requests: Sequence[Request], config: Config, ranks: Ranks, title: str) -> Sequence[Answer]:
    shown = ranks.index == 0 and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=not shown, transient=True) as progress:
        bar = progress.add_task(title, total=len(requests) / ranks.count)
        return answer(model, requests, config.batch_tokens, ranks, lambda done: progress.advance(bar, done))


def _follow(job: Job, item: int, answers: Sequence[Answer]) -> Sequence[Request]:
    """An item's next requests; none where they would be longer than the context."""
    if job.task.follow is None:
        return ()
    requests = job.task.follow(job.items[item], answers, job.prompter)
    fitting = _asked(requests, job.prompter.context_tokens) if requests else ()
    return () if isinstance(fitting, str) else fitting


def _task_result(
    task: Task[Any],
    config: Config,
    samples: Mapping[str, Sequence[Sample]],
    skipped: Sequence[Skipped],
    seconds: Mapping[str, float],
) -> TaskResult:
    count = len(next(iter(samples.values())))
    return TaskResult(
        name=task.name,
        version=task.version,
        data=_data(task, config),
        samples=count,
        skipped=skipped,
        metrics=compare(task.metrics, samples),
        tables={name: task.tables(own) for name, own in samples.items()} if task.tables else {},
        seconds=seconds,
    )


def _data(task: Task[Any], config: Config) -> dict[str, str]:
    path = config.data_of(task.name)
    if path is not None:
        return {str(file): sha256_file(file) for file in expand(path)}
    return {f"hub:{task.source.path}": task.source.revision or "newest"} if isinstance(task.source, Hub) else {}


def _result(config: Config, ranks: Ranks, checkpoints: Sequence[Checkpoint], tasks: Sequence[TaskResult]) -> Result:
    precision = choose_precision(config.precision, ranks.device)
    models = [
        ModelInfo(c.name, str(c.folder), precision, c.context_tokens, c.digests() if ranks.index == 0 else {})
        for c in checkpoints
    ]
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    settings = dataclasses.asdict(config) | {"device": device, "ranks": ranks.count}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Result(created=now, settings=settings, versions=versions, models=models, tasks=tasks)
