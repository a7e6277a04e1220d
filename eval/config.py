"""What to evaluate, on what, and how: one typed, frozen configuration from the command line.

This file imports nothing heavy: `--help` must answer in under a second.
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from eval.config_file import SLIP, words_of
from eval.foreign_words import about
from eval.protocols import Task
from eval.tasks import TASKS, samples
from eval.tasks.find import find
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.common.suggest import did_you_mean
from zerotune.data.file_options import FileOptions

REPEATABLE = ("model", "data", "training_data", "filter")
WRONG_VALUE = re.compile(r'Parser key "(?P<key>\w+)": .*(?:Got|Given) value: (?P<value>.*)')
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
"""


@dataclass(frozen=True)
class Config:
    """An evaluation.

    Args:
        model: A checkpoint folder in Hugging Face layout (safetensors). Repeat the option to compare several.
        baseline: The checkpoint that the others are compared with; without it, the first --model.
        tasks: Names of tasks, or YAML files that describe your own, separated by commas.
        data: A file, folder or glob (JSON, JSONL, CSV, Parquet, text) for all tasks, or TASK=FILE for one. Repeatable:
            all are read. Without it a task takes a public data set (docs/evaluation.md).
        training_data: A file, folder or glob that a model was trained on, to be looked for among the tasks' rows.
            Repeatable. What a checkpoint's run.json names is looked at anyway.
        delimiter: What stands between the columns of --data's CSV files; by default a comma, in .tsv a tab.
        encoding: Of --data's text files (gb18030, big5, utf-16, cp1252); by default UTF-8, or UTF-16 with its mark.
        filter: COLUMN=VALUE, which rows of --data to use. Repeatable: values of one column are alternatives.
        out: The folder for report.html, report.md, result.json and the samples.
        tensorboard: The folder for TensorBoard's curves; without it, tensorboard/ in --out.
        template: Chat template of conversations. tokenizer is the checkpoint's own; raw uses none; or a .jinja file.
        max_rows: Use only so many rows of each task's data, the first ones of each of its files (of CMMLU, subjects) by
            turns; 0 uses all.
        encoder: The folder of a sentence encoder (safetensors), by which qa and dialogue are scored by meaning too.
        temperatures: At which samples continues each prompt, one or more; 0 is greedy, above it tokens are drawn.
        sample_seed: Draw these rows at random with this seed from all files together; without it they are the first.
        max_new_tokens: Longest generated answer; 0 is each task's own limit.
        window_tokens: Texts longer than this are scored in overlapping windows; 0 is the model's whole context.
        date: The day that chat templates which read the clock are told, as 2026-01-31; without it, that of the run that
            trained the checkpoint, or else the day on which this evaluation began.
        allow_other_template: Let --template differ from the chat template that the checkpoint was trained with.
        batch_tokens: Most token positions of one batch; 0 is as many as free memory allows. Changes no result.
        precision: Arithmetic and storage of the weights. auto is bf16 where the hardware is fast at it, else fp32.
        quantization: Keep the weights in 4 bits (nf4) or 8 (int8) by bitsandbytes.
        resume: auto takes the answers that OUT/journal holds; never asks again.
    """

    model: list[str] = field(default_factory=list)
    baseline: str | None = None
    tasks: str = ""
    data: list[str] = field(default_factory=list)
    training_data: list[str] = field(default_factory=list)
    delimiter: str | None = None
    encoding: str | None = None
    filter: list[str] = field(default_factory=list)
    out: str = "runs/evaluation"
    tensorboard: str | None = None
    template: str = "tokenizer"
    max_rows: int = 0
    encoder: str | None = None
    temperatures: tuple[float, ...] = samples.TEMPERATURES
    sample_seed: int | None = None
    max_new_tokens: int = 0
    window_tokens: int = 0
    date: str | None = None
    allow_other_template: bool = False
    batch_tokens: int = 0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    resume: Literal["auto", "never"] = "auto"

    @property
    def task_words(self) -> list[str]:
        """Names and files of the tasks asked for, in order, each once."""
        return list(dict.fromkeys(word.strip() for word in self.tasks.split(",") if word.strip()))

    @property
    def chosen_tasks(self) -> list[Task[Any]]:
        """The tasks asked for. Raises UserError for one that there is not."""
        tasks = [find(word) for word in self.task_words]
        return [samples.at(self.temperatures) if task is samples.TASK else task for task in tasks]

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks asked for."""
        return [task.name for task in self.chosen_tasks]

    @property
    def folders(self) -> list[str]:
        """The checkpoints, the baseline first."""
        return [self.baseline, *self.model] if self.baseline else self.model

    @property
    def file_options(self) -> FileOptions:
        """How the files of --data are read."""
        wanted: dict[str, list[str]] = {}
        for column, _, value in (entry.partition("=") for entry in self.filter):
            wanted.setdefault(column, []).append(value)
        return FileOptions(self.delimiter, self.encoding, wanted)

    def data_of(self, task: str) -> list[str]:
        """The data given for this task, or else for all; in the order given."""
        own = [entry.partition("=")[2] for entry in self.data if entry.startswith(f"{task}=")]
        named = {*TASKS, *self.task_names}
        shared = [entry for entry in self.data if entry.partition("=")[0] not in named or "=" not in entry]
        return own or shared


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe, and the files that `--config` names.

    Options win over files and later files over earlier ones. `--help` prints and raises SystemExit(0). Raises UserError
    with one message for whatever cannot be meant.
    """
    parser = _parser()
    known = [f.name for f in fields(Config)]
    refused = _unknown(arguments, known)
    files, rest = _config_files(arguments)
    words: list[str] = []
    for file in files:
        own, faults = words_of(file, known, REPEATABLE, lambda word: _parsed(parser, [word]))
        refused += faults
        words = _over(words, own)
    if refused:
        raise UserError("\n".join(refused))
    namespace = _parsed(parser, _over(words, rest))
    config = Config(**{name: namespace[name] for name in known})
    _check(config)
    _check_use(config, {word.partition("=")[0] for word in rest})
    return config


def _parsed(parser: ArgumentParser, words: list[str]) -> Any:
    try:
        namespace = parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(_in_words(" ".join(str(error).split()))) from error
    namespace["temperatures"] = _temperatures(namespace["temperatures"])
    return namespace


def _in_words(message: str) -> str:
    """The parser's message, without its words for types."""
    found = WRONG_VALUE.match(message)
    if found is None:
        return message
    hint = get_type_hints(Config)[found["key"]]
    if get_origin(hint) is Literal:
        wanted = f"one of {', '.join(get_args(hint))}"
    else:
        wanted = "true or false" if hint is bool else "a whole number"
    return f"--{found['key']} {found['value']}: must be {wanted}"


def _temperatures(words: Sequence[str]) -> tuple[float, ...]:
    """Numbers, between words or commas, each once."""
    texts = [text.strip() for word in words for text in word.split(",") if text.strip()]
    if not texts:
        raise UserError("--temperatures: at least one is needed, for example 0 0.7 1.2")
    numbers = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise UserError(f"--temperatures {text}: must be a number, at least 0 (greedy)")
        numbers.append(abs(number))  # -0 is 0
    return tuple(dict.fromkeys(numbers))


def _config_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """What `--config` names, and the other words."""
    files, rest, words = [], [], iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--config":
            rest.append(word)
            continue
        path = Path(value if equals else next(words, ""))
        if not path.is_file():
            raise UserError(f"--config {path}: there is no such file{nearest(path)}")
        files.append(path)
    return files, rest


def _over(words: list[str], later: list[str]) -> list[str]:
    """Both, where a repeatable option that is given later replaces what was given before."""
    given = {word.partition("=")[0] for word in later}
    replaced = tuple(f"--{name}=" for name in REPEATABLE if f"--{name}" in given)
    return [word for word in words if not word.startswith(replaced)] + later if replaced else words + later


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the epilog."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="eval",
        description="Evaluates and compares checkpoints.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    help_of = {entry.arg_name: entry.description for entry in parse_docstring(Config.__doc__ or "").params}
    for name in REPEATABLE:
        parser.add_argument(f"--{name}", action="append", type=str, default=[], help=help_of[name])
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=str,
        metavar="NUMBER",
        default=[f"{temperature:g}" for temperature in samples.TEMPERATURES],
        help=help_of["temperatures"],
    )
    parser.add_class_arguments(Config, skip={*REPEATABLE, "temperatures"})
    parser.add_argument("--config", metavar="FILE", help="A YAML file of these options (recipes/eval). Repeatable.")
    return parser


def _unknown(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """A line for each option that there is not."""
    known = [*(f"--{name}" for name in names), "--config", "--help"]
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [word for word in options if word not in known]
    return [f"unknown option {word}{about(word) or did_you_mean(word, known, SLIP)}" for word in unknown]


def _check(config: Config) -> None:
    if not config.model:
        raise UserError("nothing to evaluate: give --model CHECKPOINT")
    if not config.task_words:
        raise UserError(f"no task: give --tasks with some of {', '.join(TASKS)}, or a FILE.yaml of your own")
    names = config.task_names
    for task in config.chosen_tasks:
        if names.count(task.name) > 1:
            raise UserError(f"two tasks are called {task.name}; give one of the files another name")
        if not config.data_of(task.name) and task.source is None:
            raise UserError(f"task {task.name} needs data: give --data FILE (or --data {task.name}=FILE)")
    for key, least in {"max_rows": 0, "window_tokens": 0, "max_new_tokens": 0, "batch_tokens": 0}.items():
        if getattr(config, key) < least:
            raise UserError(f"--{key} {getattr(config, key)}: must be at least {least}")
    for option, problem in config.file_options.problems():
        raise UserError(f"--{option}: {problem}")
    for entry in config.filter:
        if "=" not in entry:
            raise UserError(f"--filter {entry}: must be COLUMN=VALUE")
    if config.window_tokens == 1:
        raise UserError("--window_tokens 1: a token needs another one before it; must be 0 or at least 2")
    if config.date is not None and not _is_day(config.date):
        raise UserError(f"--date {config.date}: must be a day, as 2026-01-31")
    if config.template not in ("tokenizer", "raw") and not Path(config.template).is_file():
        raise UserError(f"--template {config.template}: neither tokenizer nor raw nor a .jinja file")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_use(config: Config, given: Set[str]) -> None:
    """What is said on the command line and would be of no effect. A file may say more than it is used for.

    given: the options on the command line.
    """
    names = [*TASKS, *config.task_names]
    for entry in config.data if "--data" in given else ():
        task, equals, _ = entry.partition("=")
        if equals and task in names and task not in config.task_names:
            raise UserError(f"--data {entry}: {task} is not among --tasks")
        if equals and (meant := did_you_mean(task, names)) and task not in names and not Path(entry).exists():
            raise UserError(f"--data {entry}: there is no such file, and no task {task}{meant}")
    for option in ("--delimiter", "--encoding", "--filter"):
        if option in given and not config.data:
            raise UserError(f"{option}: it says how the files of --data are read; give that too")
    if "--temperatures" in given and samples.TASK.name not in config.task_names:
        raise UserError("--temperatures: only the task samples reads them; give --tasks samples too")
    if "--sample_seed" in given and not config.max_rows:
        raise UserError(f"--sample_seed {config.sample_seed}: it draws --max_rows rows; give that too")
