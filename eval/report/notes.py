"""Notes of a report: skipped rows, rows in the training data, and how the numbers were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from eval.ngram_overlap import PASSAGE
from eval.report import words
from eval.result import Contamination, MetricResult, Result, Subsample, TaskResult
from zerotune.common.console import counted
from zerotune.common.metric_format import plain

HOW = {
    "row": "the same row",
    "words": "the same words",
    "passage": f"{PASSAGE} consecutive words or characters, or a whole shorter text",
}

SHOWN_MODELS = 2  # with more models, a note gives no numbers

SPEED = (
    "Times exclude loading. Tokens are those processed by the model, of prompts and answers: shared prefixes count "
    "once; padding and cached answers (from the journal or another task) do not count"
)


def warnings(result: Result) -> list[str]:
    """Sentences on what limits the results; one for several tasks or models if it holds for all of them."""
    names: dict[str, list[str]] = {}
    for task in result.tasks:
        for name, text in _warnings(task, result.settings.get("sample_seed")):
            names.setdefault(text, []).append(name)
    return [f"{'; '.join(own)}: {text}" for text, own in names.items()]


def _warnings(task: TaskResult, seed: int | None) -> Iterator[tuple[str, str]]:
    """(task, or task and model, or task and metric; what limits its results)."""
    rows = counted(task.samples, "row")
    if task.fewer:
        yield task.name, _subsample(task.fewer, seed)
    if task.contamination and task.contamination.found:
        yield task.name, _contaminated(task)
    for line in task.left_out:
        yield task.name, line
    if task.skipped:
        yield task.name, f"{counted(len(task.skipped), 'row')} left out of these numbers"
    for model, problems in task.template_problems.items():
        for problem, ids in problems.items():
            yield f"{task.name}, {model}", f"in {len(ids):,} of {rows} {problem}; the first is {ids[0]}"
    for model, ids in task.only_reasoning.items():
        ended = f"{len(ids):,} of {rows} ended within the reasoning and count as no answer"
        yield f"{task.name}, {model}", f"{ended}; raise --max_new_tokens"
    for model, ids in task.cut_short.items():
        rest = "the rest of the answer, or the next turn, try or tool call"
        yield f"{task.name}, {model}", f"the context was too short for {rest}, of {counted(len(ids), 'row')}"
    for metric in task.metrics:
        for reason in _reasons(metric):
            yield words.about(task, metric), reason


def _reasons(metric: MetricResult) -> list[str]:
    """Why the metric has no interval or was not tested; each reason once."""
    found = [estimate.reason for estimate in metric.estimates] + [change.reason for change in metric.differences]
    return [reason for reason in dict.fromkeys(found) if reason]


def _subsample(fewer: Subsample, seed: int | None) -> str:
    lead = f"{fewer.rows:,} of {counted(fewer.of_rows, 'row')} used (--max_rows), "
    if seed is not None:
        return lead + f"drawn with seed {seed}"
    if fewer.of_files == 1:
        return lead + "the first ones"
    if fewer.files == fewer.of_files:
        return lead + f"the first ones of each of {fewer.of_files:,} files in turn"
    return lead + f"the first ones of {fewer.files:,} files; none of the other {fewer.of_files - fewer.files:,}"


def _contaminated(task: TaskResult) -> str:
    found = task.contamination
    assert found is not None
    stand = "share a passage with" if {overlap.how for overlap in found.found} == {"passage"} else "occur in"
    lead = f"{len(found.found):,} of {task.samples:,} rows {stand} the training data"
    if not found.clean:
        return f"{lead}; no clean row is left, so these numbers say nothing about new data"
    if not found.metrics or len(found.metrics[0].estimates) > SHOWN_MODELS:  # the table below has them
        return lead
    metric, again = task.metrics[0], found.metrics[0]
    values = "; ".join(
        f"{words.named(metric)} {words.number(metric, all_rows.value)}, on the {found.clean:,} clean rows "
        f"{words.number(metric, few.value)} ({all_rows.model})"
        for all_rows, few in zip(metric.estimates, again.estimates, strict=True)
    )
    return f"{lead}. {values}"


def contamination(task: TaskResult) -> list[str]:
    """What was compared with the training data, and what was found."""
    found = task.contamination
    if found is None:
        return []
    lines = []
    if found.training:
        rows = sum(found.training.values())
        files = ", ".join(f"{file} ({count:,} rows)" for file, count in found.training.items())
        lines.append(f"{task.samples:,} rows were compared with {rows:,} rows of training data: {files}.")
        lines.append(_counts(found) if found.found else "None was found there.")
    lines += [f"Training data that could not be compared: {reason}" for reason in found.missing]
    return lines


def _counts(found: Contamination) -> str:
    counts = Counter(overlap.how for overlap in found.found)
    parts = "; ".join(f"{text}: {counts[how]:,}" for how, text in HOW.items() if counts[how])
    return f"{counted(len(found.found), 'row')} found there ({parts})."


def circumstances(result: Result) -> list[str]:
    """Checkpoints, data, times, methods and versions."""
    lines = [
        f"{model.name}: {model.path}, {model.precision}, weights {model.digests['weights'][:12]}"
        + (f"; its chat template reads the clock and was given {model.template_date}" if model.template_date else "")
        + (f"; conversations without a system message have {model.system_prompt!r}" if model.system_prompt else "")
        for model in [*result.models, *([result.encoder] if result.encoder else [])]
    ]
    for task in result.tasks:
        times = ", ".join(f"{model} {_time(task, model)}" for model in task.seconds)
        files = ", ".join(f"{file} ({digest[:12]})" for file, digest in task.data.items()) or "built-in rows"
        lines.append(f"{task.name} version {task.version}: {files}; {times}")
    if any(any(task.tokens.values()) for task in result.tasks):
        lines.append(SPEED)
    metrics = [metric for task in result.tasks for metric in task.metrics]
    used = {e.method for m in metrics for e in m.estimates} | {d.method for m in metrics for d in m.differences}
    methods = sorted(method for method in used if method)
    if methods:
        lines.append(f"95 % intervals: {', '.join(methods)}; differences are paired on the same rows")
    tests = sorted({d.test for m in metrics for d in m.differences if d.test})
    if tests:
        lines.append(
            f"p: {', '.join(tests)}. A difference is significant if p < 0.05 and its interval excludes no change "
            "(0, or a ratio of 1). Detectable from: true differences that 4 of 5 such evaluations would find"
        )
    versions = ", ".join(f"{name} {version}{_commit(result, name)}" for name, version in result.versions.items())
    ranks = f"{result.settings['ranks']} process{'' if result.settings['ranks'] == 1 else 'es'}"
    lines.append(f"{result.created}, {result.settings['device']}, {ranks}; {versions}")
    return lines


def _commit(result: Result, name: str) -> str:
    """The commit of the code that ran, for ZeroTune's version."""
    if name != "zerotune" or result.code is None:
        return ""
    return f" (commit {result.code['commit'][:12]}{', with changes' if result.code['dirty'] else ''})"


def _time(task: TaskResult, model: str) -> str:
    """Time, speed and number of cached answers."""
    seconds, tokens, reused = task.seconds[model], task.tokens.get(model, 0), task.reused.get(model, 0)
    speed = []
    if seconds and tokens:
        speed = [f"{plain(task.samples / seconds)} rows/s", f"{tokens / seconds:,.0f} tokens/s"]
    cached = [f"{counted(reused, 'answer')} cached"] if reused else []
    return f"{seconds:.1f} s" + (f" ({', '.join(speed + cached)})" if speed + cached else "")
