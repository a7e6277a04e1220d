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
from zerotune.common.schema import STRICT, Fault, checked, fields_of, shown
from zerotune.common.suggest import SLIP, did_you_mean
from zerotune.data.file_options import FileOptions

# Options that may be given several times, and what they take.
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
"""


def _text(value: Any) -> str:
    """A number or truth value of a file as it stands there."""
    if isinstance(value, dict | list):
        raise ValueError(f"one value is expected, not {shown(value)}")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _texts(value: Any) -> list[str]:
    return [_text(inner) for inner in (value if isinstance(value, list) else [value])]


def _named(value: Any) -> list[str]:
    """{qa: [a, b]} is qa=a and qa=b."""
    if not isinstance(value, dict):
        return _texts(value)
    return [f"{name}={text}" for name, found in value.items() for text in _texts(found)]


def _numbers(value: Any) -> tuple[Any, ...]:
    """Those between spaces or commas."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else (value,)
    words = [word for word in re.split(r"[\s,]+", value) if word]
    return tuple(command_line.located(word, float, "--temperatures").value for word in words)


def _each_once(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if not numbers:
        raise ValueError("at least one is needed, for example 0 0.7 1.2")
    return tuple(dict.fromkeys(abs(number) for number in numbers))  # -0 is 0


def _day(text: str) -> str:
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise ValueError(f"must be a day, as 2026-01-31, not {text}")


def _not_empty(text: str) -> str:
    """It would be the folder where one stands."""
    if not text.strip():
        raise ValueError("is empty; a variable of the shell may be unset")
    return text


Text = Annotated[str, BeforeValidator(_text)]
Place = Annotated[Text, AfterValidator(_not_empty)]
Places = Annotated[list[Place], BeforeValidator(_texts)]
Temperatures = Annotated[tuple[NonNegativeFloat, ...], BeforeValidator(_numbers), AfterValidator(_each_once)]


@with_config(STRICT)
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
        columns: FIELD=COLUMN, what --data's files call a field, for example question=题目. Repeatable.
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

    model: Places = field(default_factory=list)
    baseline: Place | None = None
    tasks: Annotated[str, BeforeValidator(lambda value: ",".join(_texts(value)))] = ""
    data: Annotated[list[Place], BeforeValidator(_named)] = field(default_factory=list)
    training_data: Places = field(default_factory=list)
    delimiter: Text | None = None
    encoding: Text | None = None
    columns: Annotated[list[str], BeforeValidator(_named)] = field(default_factory=list)
    filter: Annotated[list[str], BeforeValidator(_named)] = field(default_factory=list)
    out: Place = "runs/evaluation"
    tensorboard: Place | None = None
    template: Text = "tokenizer"
    max_rows: NonNegativeInt = 0
    encoder: Place | None = None
    temperatures: Temperatures = samples.TEMPERATURES
    sample_seed: int | None = None
    max_new_tokens: NonNegativeInt = 0
    window_tokens: NonNegativeInt = 0
    date: Annotated[str, AfterValidator(_day)] | None = None
    allow_other_template: bool = False
    batch_tokens: NonNegativeInt = 0
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
        columns = {name: column for name, _, column in (entry.partition("=") for entry in self.columns)}
        return FileOptions(self.delimiter, self.encoding, wanted, columns)

    def data_of(self, task: str) -> list[str]:
        """The data given for this task, or else for all; in the order given."""
        own = [entry.partition("=")[2] for entry in self.data if entry.startswith(f"{task}=")]
        named = {*TASKS, *self.task_names}
        shared = [entry for entry in self.data if entry.partition("=")[0] not in named or "=" not in entry]
        return own or shared


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe, and the files that `--config` names.

    Options win over files and later files over earlier ones; null in a file is as if not given. `--help` prints and
    raises SystemExit(0). Raises UserError with one message for whatever cannot be meant.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help()
        raise SystemExit(0)
    kinds = fields_of(Config)
    words = command_line.pairs(arguments, lambda name: name[2:] in {*kinds, "config"} - {"temperatures"})
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for file in (command_line.read_file(text, "configuration") for name, text in words if name == "--config"):
        values |= {key: value for key, value in file.value.items() if value is not None or key not in kinds}
        places |= {key: file.places[key,] for key in file.value}
    given: dict[str, Any] = {}
    for key, text in ((name[2:], text) for name, text in words if name != "--config"):
        if key in REPEATABLE:
            given.setdefault(key, []).append(text)
        else:
            is_text = key not in kinds or key == "temperatures"
            given[key] = text if is_text else command_line.located(text, kinds[key], f"--{key}").value
    config, faults = checked(Config, values | given)
    if faults:
        keys = [*values, *given]
        faults.sort(key=lambda fault: keys.index(str(fault.way[0])))
        raise UserError("\n".join(_told(fault, {**places, **dict.fromkeys(given, "")}) for fault in faults))
    _check(config)
    _check_use(config, {f"--{key}" for key in given})
    return config


def _told(fault: Fault, places: Mapping[str, str]) -> str:
    """The line for it. places: where each option stands; of those on the command line an empty text."""
    key = str(fault.way[0])
    place, dashes = (f"{places[key]}: ", "") if places[key] else ("", "--")
    if not fault.unknown:
        return f"{place}{dashes}{fault.message}"
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
        raise UserError(f"no task: give --tasks with some of {', '.join(TASKS)}, or a FILE.yaml of your own")
    names = config.task_names
    for task in config.chosen_tasks:
        if names.count(task.name) > 1:
            raise UserError(f"two tasks are called {task.name}; give one of the files another name")
        if not config.data_of(task.name) and task.source is None:
            raise UserError(f"task {task.name} needs data: give --data FILE (or --data {task.name}=FILE)")
    for entry in config.data:
        if entry in [f"{word}=" for word in config.task_words]:
            raise UserError(f"--data {entry}: names no file")
    for option, problem in config.file_options.problems():
        raise UserError(f"--{option}: {problem}")
    for entry in config.filter:
        if entry.find("=") < 1:
            raise UserError(f"--filter {entry}: must be COLUMN=VALUE")
    for entry in config.columns:
        if not all(entry.partition("=")):
            raise UserError(f"--columns {entry}: must be FIELD=COLUMN")
    if config.window_tokens == 1:
        raise UserError("--window_tokens 1: a token needs another one before it; must be 0 or at least 2")
    if config.template not in ("tokenizer", "raw") and not Path(config.template).is_file():
        raise UserError(f"--template {config.template}: neither tokenizer nor raw nor a .jinja file")


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
    for option in ("--delimiter", "--encoding", "--filter", "--columns"):
        if option in given and not config.data:
            raise UserError(f"{option}: it says how the files of --data are read; give that too")
    if "--temperatures" in given and samples.TASK.name not in config.task_names:
        raise UserError("--temperatures: only the task samples reads them; give --tasks samples too")
    if "--sample_seed" in given and not config.max_rows:
        raise UserError(f"--sample_seed {config.sample_seed}: it draws --max_rows rows; give that too")
