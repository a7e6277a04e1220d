"""What to evaluate, on what, and how: one typed, frozen configuration from the command line and YAML files.

This file imports nothing heavy: `--help` must answer in under a second.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, NonNegativeFloat, NonNegativeInt, with_config

from eval.other_tools import about
from eval.protocols import Task
from eval.tasks import TASKS, samples
from eval.tasks.lookup import find
from zerotune.common import command_line
from zerotune.common.errors import UserError
from zerotune.common.schema import STRICT, ConfigProblem, checked, fields_of, shown
from zerotune.common.suggest import SLIP, did_you_mean
from zerotune.data.file_options import FileOptions
from zerotune.data.formats import FORMATS

# Options that may be given several times -> their values in --help.
REPEATABLE = {
    "model": "FOLDER",
    "data": "[TASK=]FILE",
    "training_data": "FILE",
    "filter": "COLUMN=VALUE",
    "columns": "FIELD=COLUMN",
}
USAGE = """\
accelerate launch eval/main.py --model CHECKPOINT --tasks NAME[,NAME ...]
       [--data FILE] [--config FILE] ..."""
NAMES_WIDTH = max(map(len, TASKS)) + 4
TASK_LINES = [
    textwrap.fill(task.about, 80, initial_indent=f"  {name:<{NAMES_WIDTH - 2}}", subsequent_indent=" " * NAMES_WIDTH)
    for name, task in TASKS.items()
]
EPILOG = f"""\
tasks:
{chr(10).join(TASK_LINES)}

For example, before and after a training run:
  accelerate launch eval/main.py --baseline BASE --model runs/NAME/merged \\
      --tasks perplexity,qa --data held_out.jsonl

Its memory, before the start, without weights: add --plan [--gpu-memory 80GB].
"""


def _text(value: Any) -> str:
    """A single value of a YAML file as text."""
    if isinstance(value, dict | list):
        raise ValueError(f"one value is expected, not {shown(value)}")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _texts(value: Any) -> list[str]:
    return [_text(inner) for inner in (value if isinstance(value, list) else [value])]


def _named(value: Any) -> list[str]:
    """{qa: [a, b]} -> qa=a, qa=b"""
    if not isinstance(value, dict):
        return _texts(value)
    return [f"{name}={text}" for name, found in value.items() for text in _texts(found)]


def _numbers(value: Any) -> tuple[Any, ...]:
    """Split a text at spaces and commas."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else (value,)
    words = [word for word in re.split(r"[\s,]+", value) if word]
    return tuple(command_line.located(word, float, "--temperatures").value for word in words)


def _distinct(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if not numbers:
        raise ValueError("at least one is needed, for example 0 0.7 1.2")
    return tuple(dict.fromkeys(abs(number) for number in numbers))  # -0 is 0


def _iso_date(text: str) -> str:
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise ValueError(f"must be a date like 2026-01-31, not {text}")


def _not_empty(text: str) -> str:
    """An empty path would be the current folder."""
    if not text.strip():
        raise ValueError("is empty; check the variables of the shell")
    return text


Text = Annotated[str, BeforeValidator(_text)]
Location = Annotated[Text, AfterValidator(_not_empty)]  # a file, folder or glob
Locations = Annotated[list[Location], BeforeValidator(_texts)]
Temperatures = Annotated[tuple[NonNegativeFloat, ...], BeforeValidator(_numbers), AfterValidator(_distinct)]


@with_config(STRICT)
@dataclass(frozen=True)
class Config:
    """An evaluation.

    Args:
        model: A checkpoint folder in Hugging Face layout (safetensors). Repeat the option to compare several.
        baseline: The checkpoint that the others are compared with. Default: the first --model.
        tasks: Names of tasks, or YAML files of your own tasks, separated by commas.
        data: A file, folder or glob (JSON, JSONL, CSV, Parquet, text) for all tasks, or TASK=FILE for one. Repeatable:
            all are read. Without it a task uses a public data set (docs/evaluation.md).
        training_data: A file, folder or glob of training data; the tasks' rows are looked for in it. Repeatable. The
            training data named in a checkpoint's run.json is always searched.
        delimiter: The column separator of CSV files in --data. Default: a comma, in .tsv a tab.
        encoding: The encoding of text files in --data (gb18030, big5, utf-16, cp1252). Default: UTF-8, or UTF-16 with
            a byte order mark.
        columns: FIELD=COLUMN, the column of --data that holds a field, for example question=题目. Repeatable.
        filter: COLUMN=VALUE, which rows of --data to use. Repeatable: values of one column are alternatives.
        out: The folder for report.html, report.md, result.json and the samples.
        tensorboard: The folder for TensorBoard curves. Default: tensorboard/ in --out.
        template: The chat template: tokenizer (the checkpoint's own), raw (none), or a .jinja file.
        system_prompt: The system message of conversations that have none. Default: data.system_prompt of the run that
            trained the checkpoint.
        max_rows: The maximum number of rows of each task: the first ones of its files (for CMMLU: subjects) in turn; 0
            uses all.
        encoder: The folder of a sentence encoder (safetensors), to score qa and dialogue by semantic similarity too.
        temperatures: The temperatures at which the task samples continues each prompt; 0 is greedy.
        sample_seed: Select --max_rows at random with this seed, from all files together, instead of the first ones.
        max_new_tokens: The maximum length of a generated answer; 0 is the default of each task.
        window_tokens: Texts longer than this are scored in overlapping windows; 0 is the model's whole context.
        date: The date for chat templates that print one, like 2026-01-31. Default: that of the checkpoint's training
            run, else the day on which this evaluation began.
        allow_other_template: Allow a --template that differs from the one the checkpoint was trained with.
        batch_tokens: The maximum number of token positions of a batch; 0 depends on free memory. Does not affect
            results.
        precision: The dtype of weights and arithmetic. auto is bf16 on hardware that is fast at it, else fp32.
        quantization: Quantise the weights to 4 bits (nf4) or 8 (int8) with bitsandbytes.
        resume: auto reuses the answers in OUT/journal; never ignores them.
    """

    model: Locations = field(default_factory=list)
    baseline: Location | None = None
    tasks: Annotated[str, BeforeValidator(lambda value: ",".join(_texts(value)))] = ""
    data: Annotated[list[Location], BeforeValidator(_named)] = field(default_factory=list)
    training_data: Locations = field(default_factory=list)
    delimiter: Text | None = None
    encoding: Text | None = None
    columns: Annotated[list[str], BeforeValidator(_named)] = field(default_factory=list)
    filter: Annotated[list[str], BeforeValidator(_named)] = field(default_factory=list)
    out: Location = "runs/evaluation"
    tensorboard: Location | None = None
    template: Text = "tokenizer"
    system_prompt: Text | None = None
    max_rows: NonNegativeInt = 0
    encoder: Location | None = None
    temperatures: Temperatures = samples.TEMPERATURES
    sample_seed: int | None = None
    max_new_tokens: NonNegativeInt = 0
    window_tokens: NonNegativeInt = 0
    date: Annotated[str, AfterValidator(_iso_date)] | None = None
    allow_other_template: bool = False
    batch_tokens: NonNegativeInt = 0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    resume: Literal["auto", "never"] = "auto"

    @property
    def task_words(self) -> list[str]:
        """Names and files of the chosen tasks, in order, each once."""
        return list(dict.fromkeys(word.strip() for word in self.tasks.split(",") if word.strip()))

    @property
    def chosen_tasks(self) -> list[Task[Any]]:
        """The chosen tasks. Raises UserError for an unknown one."""
        tasks = [find(word) for word in self.task_words]
        return [samples.at(self.temperatures) if task is samples.TASK else task for task in tasks]

    @property
    def task_names(self) -> list[str]:
        """The names of the chosen tasks."""
        return [task.name for task in self.chosen_tasks]

    @property
    def folders(self) -> list[str]:
        """The checkpoints, the baseline first."""
        return [self.baseline, *self.model] if self.baseline else self.model

    @property
    def file_options(self) -> FileOptions:
        """How to read the files of --data."""
        wanted: dict[str, list[str]] = {}
        for column, _, value in (entry.partition("=") for entry in self.filter):
            wanted.setdefault(column, []).append(value)
        columns = {name: column for name, _, column in (entry.partition("=") for entry in self.columns)}
        return FileOptions(self.delimiter, self.encoding, wanted, columns)

    def data_of(self, task: str) -> list[str]:
        """The data given for this task, else that for all tasks, in the order given."""
        own = [entry.partition("=")[2] for entry in self.data if entry.startswith(f"{task}=")]
        named = {*TASKS, *self.task_names}
        shared = [entry for entry in self.data if entry.partition("=")[0] not in named or "=" not in entry]
        return own or shared


def parse(arguments: Sequence[str]) -> Config:
    """Parse command-line arguments and the files of `--config`.

    Options take precedence over files, later files over earlier ones; null in a file means not given. `--help` prints
    and raises SystemExit(0). Raises UserError with all problems.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help()
        raise SystemExit(0)
    kinds = fields_of(Config)
    pairs = command_line.pairs(arguments, lambda name: name[2:] in {*kinds, "config"} - {"temperatures"})
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for file in (command_line.read_file(text, "configuration") for name, text in pairs if name == "--config"):
        values |= {key: value for key, value in file.value.items() if value is not None or key not in kinds}
        places |= {key: file.places[key,] for key in file.value}
    given: dict[str, Any] = {}
    for key, text in ((name[2:], text) for name, text in pairs if name != "--config"):
        if key in REPEATABLE:
            given.setdefault(key, []).append(text)
        else:
            is_text = key not in kinds or key == "temperatures"
            given[key] = text if is_text else command_line.located(text, kinds[key], f"--{key}").value
    config, problems = checked(Config, values | given)
    if problems:
        keys = [*values, *given]
        problems.sort(key=lambda problem: keys.index(str(problem.key[0])))
        raise UserError("\n".join(_message(problem, {**places, **dict.fromkeys(given, "")}) for problem in problems))
    _check(config)
    _check_use(config, {f"--{key}" for key in given})
    return config


def _message(problem: ConfigProblem, places: Mapping[str, str]) -> str:
    """A line for the user. places: file:line of each option; empty for those of the command line."""
    key = str(problem.key[0])
    place, dashes = (f"{places[key]}: ", "") if places[key] else ("", "--")
    if not problem.unknown:
        return f"{place}{dashes}{problem.message}"
    name, known = f"{dashes}{key}", [f"{dashes}{option}" for option in fields_of(Config)]
    return f"{place}unknown option {name}{about(name) or did_you_mean(name, known, SLIP) or '; --help lists all'}"


def _print_help() -> None:
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description="Evaluates and compares checkpoints.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="A YAML file of these options (recipes/eval). Repeatable.")
    command_line.add(parser, Config, takes={**REPEATABLE, "temperatures": "NUMBER ..."})
    parser.print_help()


def _check(config: Config) -> None:
    if not config.model:
        raise UserError("nothing to evaluate: give --model CHECKPOINT")
    if not config.task_words:
        raise UserError(f"no task: give --tasks with some of {', '.join(TASKS)}, or your own FILE.yaml")
    names = config.task_names
    for task in config.chosen_tasks:
        if names.count(task.name) > 1:
            raise UserError(f"two tasks have the name {task.name}; rename one of the files")
        if not config.data_of(task.name) and task.source is None:
            raise UserError(f"task {task.name} needs data: give --data FILE (or --data {task.name}=FILE)")
    for entry in config.data:
        if entry in [f"{word}=" for word in config.task_words]:
            raise UserError(f"--data {entry}: the file name is empty")
    for option, problem in config.file_options.problems():
        raise UserError(f"--{option}: {problem}")
    for entry in config.filter:
        if entry.find("=") < 1:
            raise UserError(f"--filter {entry}: must be COLUMN=VALUE")
    for entry in config.columns:
        if not all(entry.partition("=")):
            raise UserError(f"--columns {entry}: must be FIELD=COLUMN")
    known = {"subset", *(name for form in FORMATS.values() for name in form.fields)}
    for name, column in config.file_options.columns.items():
        if name not in known and not any(task.own_columns for task in config.chosen_tasks):
            raise UserError(f"--columns {name}={column}: no row format has a field {name}{did_you_mean(name, known)}")
    if config.window_tokens == 1:
        raise UserError("--window_tokens 1: must be 0 or at least 2, since a token is scored given another one")
    if config.template not in ("tokenizer", "raw") and not Path(config.template).is_file():
        raise UserError(f"--template {config.template}: must be tokenizer, raw or an existing .jinja file")


def _check_use(config: Config, given: Set[str]) -> None:
    """Refuse options of the command line (`given`) without effect; a file may have options for other tasks."""
    names = [*TASKS, *config.task_names]
    for entry in config.data if "--data" in given else ():
        task, equals, _ = entry.partition("=")
        if equals and task in names and task not in config.task_names:
            raise UserError(f"--data {entry}: {task} is not among --tasks")
        if equals and (meant := did_you_mean(task, names)) and task not in names and not Path(entry).exists():
            raise UserError(f"--data {entry}: there is no such file, and no task {task}{meant}")
    for option in ("--delimiter", "--encoding", "--filter", "--columns"):
        if option in given and not config.data:
            raise UserError(f"{option} applies to the files of --data: give that too")
    if "--temperatures" in given and samples.TASK.name not in config.task_names:
        raise UserError("--temperatures applies only to the task samples: add it to --tasks")
    if "--sample_seed" in given and not config.max_rows:
        raise UserError(f"--sample_seed {config.sample_seed} applies only with --max_rows")
