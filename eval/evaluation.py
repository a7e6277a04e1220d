"""Runs an evaluation: validate inputs, build requests, answer them, score, compare."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
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
from eval.names import model_names
from eval.protocols import Identified, Task
from eval.result import Evaluation, ModelInfo, Result, Skipped, Subsample, TaskResult
from eval.run_task import Job, JobResult, prepare, run
from eval.subsample import describe_subsample, take_subsample
from eval.task_rows import digests_of, read_items, rows_of
from zerotune.common.errors import UserError
from zerotune.common.host_memory import keep_freed_memory
from zerotune.common.version import code_state, own_version, versions
from zerotune.data.formats import describe_left_out
from zerotune.inference.answer_cache import AnswerCache
from zerotune.inference.checkpoint import Checkpoint, open_checkpoint
from zerotune.inference.prompt import Prompter
from zerotune.models.precision import choose_precision
from zerotune.models.run_facts import read_run_facts

# Libraries on which results may depend; some are optional.
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "numpy", "bitsandbytes"),
    *("sacrebleu", "rouge-score", "rouge-chinese", "jieba"),
)


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
    items, subsamples = _choose_items(tasks, config)
    jobs = _prepare_jobs(checkpoints, tasks, items, config, cache.start_date)
    overlaps = _find_overlaps(training, items, config) if ranks.index == 0 else None
    skipped = {task.name: _skipped(task, [own[k] for own in jobs.values()]) for k, task in enumerate(tasks)}
    digests = ranks.share({c.name: c.digests() for c in checkpoints} if ranks.index == 0 else {})
    encoder = ranks.share(describe(config.encoder) if config.encoder and ranks.index == 0 else None)
    runs: dict[str, dict[str, JobResult]] = {task.name: {} for task in tasks}
    for checkpoint, head in itertools.product(checkpoints, dict.fromkeys(task.head for task in tasks)):
        model = CachedModel(checkpoint, head, config, ranks, cache, digests[checkpoint.name])
        for job in jobs[checkpoint.name]:
            if job.task.head == head:
                runs[job.task.name][checkpoint.name] = run(model, job, skipped[job.task.name])
        del model
        gc.collect()  # two models at once may not fit into memory
    results = [
        _task_result(task, config, runs[task.name], items[task.name], skipped[task.name], subsamples[task.name])
        for task in tasks
    ]
    samples = {task: {name: result.samples for name, result in own.items()} for task, own in runs.items()}
    if overlaps is not None:
        results = [
            with_contamination(result, task.metrics, samples[task.name], overlaps)
            for task, result in zip(tasks, results, strict=True)
        ]
    won = {task.name: outcomes(task.metrics, samples[task.name]) for task in tasks}
    models = _describe_models(config, ranks, checkpoints, digests, jobs)
    return Evaluation(_result(config, ranks, models, with_holm_correction(results), encoder, code), samples, won)


Items = Mapping[str, Sequence[Any]]  # by task


def _choose_items(tasks: Sequence[Task[Any]], config: Config) -> tuple[Items, Mapping[str, Subsample | None]]:
    """The items to ask, and which part of all items they are."""
    items, subsamples = dict[str, Sequence[Any]](), dict[str, Subsample | None]()
    for task in tasks:
        own = read_items(task, config)
        items[task.name] = take_subsample(own, config.max_rows, config.sample_seed)
        subsamples[task.name] = describe_subsample(own, items[task.name])
    return items, subsamples


def _prepare_jobs(
    checkpoints: Sequence[Checkpoint], tasks: Sequence[Task[Any]], items: Items, config: Config, start_date: date
) -> dict[str, list[Job]]:
    """Name of each checkpoint -> its jobs."""
    jobs = {}
    days, systems = _template_dates(checkpoints, config, start_date), _system_prompts(checkpoints, config)
    for checkpoint, day, system in zip(checkpoints, days, systems, strict=True):
        jobs[checkpoint.name] = own = [
            prepare(task, items[task.name], _prompter(checkpoint, task, config, day, system)) for task in tasks
        ]
        used = [job.prompter for job in own if job.prompter.used_chat_template]
        if used and not config.allow_other_template:
            checkpoint.require_template(used[0].template, config.template)
    return jobs


def _prompter(checkpoint: Checkpoint, task: Task[Any], config: Config, day: date, system: str) -> Prompter:
    limit = config.max_new_tokens or task.max_new_tokens
    return checkpoint.prompter(config.template, limit, config.window_tokens, day, system)


def _system_prompts(checkpoints: Sequence[Checkpoint], config: Config) -> list[str]:
    """The system message of conversations without one: --system_prompt, else that of the checkpoint's training run.

    A checkpoint without a run gets that of the first one that has a run, so that their prompts agree.
    """
    if config.system_prompt is not None:
        return [config.system_prompt] * len(checkpoints)
    own = [checkpoint.system_prompt for checkpoint in checkpoints]
    default = next((text for text in own if text is not None), "")
    return [default if text is None else text for text in own]


def _template_dates(checkpoints: Sequence[Checkpoint], config: Config, start_date: date) -> list[date]:
    """The date for each checkpoint's chat template, if it reads the clock: --date, else the date of its training run.

    A checkpoint without a run gets the date of the first one that has a run, so that their prompts agree, else the
    evaluation's start date.
    """
    option = date.fromisoformat(config.date) if config.date else None
    dates = [checkpoint.template_date for checkpoint in checkpoints]
    default = next((day for day in dates if day), start_date)
    return [option or day or default for day in dates]


def _find_overlaps(training: TrainingData, items: Items, config: Config) -> Overlaps | None:
    """The rows of each task that occur in the training data, if there is any."""
    if not (training.files or training.missing):
        return None
    tasks = {task.name: task for task in config.chosen_tasks}
    texts = {name: texts_by_id(rows_of(tasks[name], config), (item.id for item in own)) for name, own in items.items()}
    return find_overlaps(training, texts)


def _skipped(task: Task[Any], jobs: Sequence[Job]) -> dict[int, str]:
    """Items that do not fit some checkpoint; all checkpoints skip them, so that all are compared on the same rows."""
    reasons: dict[int, str] = {}
    for job in jobs:
        reasons |= {k: reason for k, reason in enumerate(job.requests) if isinstance(reason, str)}
    if len(reasons) == len(jobs[0].items):
        raise UserError(f"task {task.name}: all rows were skipped, the first because it {next(iter(reasons.values()))}")
    return reasons


def _task_result(
    task: Task[Any],
    config: Config,
    runs: Mapping[str, JobResult],
    items: Sequence[Identified],
    skipped: Mapping[int, str],
    subsample: Subsample | None,
) -> TaskResult:
    samples = {name: result.samples for name, result in runs.items()}
    left_out = Counter(part for item in items for part in getattr(item, "left_out", ()))
    return TaskResult(
        name=task.name,
        version=task.version,
        data=digests_of(task, config),
        samples=len(next(iter(samples.values()))),
        skipped=[Skipped(items[k].id, reason) for k, reason in sorted(skipped.items())],
        metrics=compare(task.metrics, samples),
        tables={name: task.tables(own) for name, own in samples.items()} if task.tables else {},
        seconds={name: result.seconds for name, result in runs.items()},
        tokens={name: result.tokens for name, result in runs.items()},
        reused={name: result.reused for name, result in runs.items()},
        cut_short={name: result.cut_short for name, result in runs.items() if result.cut_short},
        only_reasoning={name: result.only_reasoning for name, result in runs.items() if result.only_reasoning},
        template_problems={name: result.template_problems for name, result in runs.items() if result.template_problems},
        left_out=describe_left_out(left_out, config.file_options.filter),
        fewer=subsample,
    )


def _describe_models(
    config: Config,
    ranks: Ranks,
    checkpoints: Sequence[Checkpoint],
    digests: Mapping[str, Mapping[str, str]],
    jobs: Mapping[str, Sequence[Job]],
) -> list[ModelInfo]:
    precision = choose_precision(config.precision, ranks.device.type == "cuda")
    days = {name: next((day for job in own if (day := job.prompter.template_date)), None) for name, own in jobs.items()}
    return [
        ModelInfo(
            name=c.name,
            path=str(c.folder),
            precision=precision,
            context_tokens=c.context_tokens,
            digests=digests[c.name],
            origin=read_run_facts(c.folder),
            template_date=day.isoformat() if (day := days[c.name]) else None,
            system_prompt=next(
                (job.prompter.system_prompt for job in jobs[c.name] if job.prompter.used_chat_template), ""
            ),
        )
        for c in checkpoints
    ]


def _result(
    config: Config,
    ranks: Ranks,
    models: Sequence[ModelInfo],
    tasks: Sequence[TaskResult],
    encoder: ModelInfo | None,
    code: Mapping[str, Any] | None,
) -> Result:
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    settings = dataclasses.asdict(config) | {"device": device, "ranks": ranks.count}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"zerotune": number} if (number := own_version()) else {}
    return Result(now, settings, own | versions(LIBRARIES), models, tasks, encoder, code)
