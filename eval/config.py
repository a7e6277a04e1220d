"""What to evaluate, on what, and how: one typed, frozen configuration from the command line.

This file imports nothing heavy: `--help` must answer in under a second.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from eval.errors import UserError
from eval.tasks import TASKS

REPEATABLE = ("model", "data")
TASK_LINES = "\n".join(f"  {name:<{max(map(len, TASKS)) + 2}}{task.about}" for name, task in TASKS.items())
EPILOG = f"""\
tasks:
{TASK_LINES}

For example, before and after a training run:
  accelerate launch eval/main.py --baseline BASE --model runs/NAME/merged --tasks perplexity,qa --data held_out.jsonl
"""


@dataclass(frozen=True)
class Config:
    """An evaluation.

    Args:
        model: A checkpoint folder in Hugging Face layout (safetensors). Repeat the option to compare several.
        baseline: The checkpoint that the others are compared with; without it, the first --model.
        tasks: Names of tasks, separated by commas.
        data: A file, folder or glob (JSON, JSONL, CSV, Parquet, text) for all tasks, or TASK=FILE for one. Repeatable.
        out: The folder for result.json, report.md and the samples.
        template: Chat template of conversations. tokenizer is the checkpoint's own; raw uses none; or a .jinja file.
        max_rows: Use only so many rows of each task's data; 0 uses all.
        sample_seed: Draw these rows at random with this seed; without it they are the first.
        max_new_tokens: Longest generated answer; 0 is each task's own limit.
        window_tokens: Texts longer than this are scored in overlapping windows; 0 is the model's whole context.
        batch_tokens: Most token positions of one batch. Bounds the memory, changes no result.
        precision: Arithmetic and storage of the weights. auto is bf16 where the hardware is fast at it, else fp32.
    """

    model: list[str] = field(default_factory=list)
    baseline: str | None = None
    tasks: str = ""
    data: list[str] = field(default_factory=list)
    out: str = "runs/evaluation"
    template: str = "tokenizer"
    max_rows: int = 0
    sample_seed: int | None = None
    max_new_tokens: int = 0
    window_tokens: int = 0
    batch_tokens: int = 8192
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"

    @property
    def task_names(self) -> list[str]:
        """The tasks asked for, in order, each once."""
        return list(dict.fromkeys(name.strip() for name in self.tasks.split(",") if name.strip()))

    @property
    def folders(self) -> list[str]:
        """The checkpoints, the baseline first."""
        return [self.baseline, *self.model] if self.baseline else self.model

    def data_of(self, task: str) -> str | None:
        """The data given for this task, or else for all."""
        own = [entry.partition("=")[2] for entry in self.data if entry.startswith(f"{task}=")]
        shared = [entry for entry in self.data if entry.partition("=")[0] not in TASKS or "=" not in entry]
        return next(iter(own + shared), None)


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe.

    `--help` prints and raises SystemExit(0). Raises UserError with one message for whatever cannot be meant.
    """
    parser = _parser()
    try:
        namespace = parser.parse_args(list(_known(arguments)))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    config = Config(**{f.name: namespace[f.name] for f in fields(Config)})
    _check(config)
    return config


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
    parser.add_class_arguments(Config, skip=set(REPEATABLE))
    return parser


def _known(arguments: Sequence[str]) -> Sequence[str]:
    known = ["--" + f.name for f in fields(Config)]
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in (*known, "--help"):
            raise UserError(f"unknown option {option}{_suggestion(option, known)}")
    return arguments


def _check(config: Config) -> None:
    if not config.model:
        raise UserError("nothing to evaluate: give --model CHECKPOINT")
    if not config.task_names:
        raise UserError(f"no task: give --tasks with some of {', '.join(TASKS)}")
    for name in config.task_names:
        if name not in TASKS:
            raise UserError(f"unknown task {name}{_suggestion(name, list(TASKS))}; there are {', '.join(TASKS)}")
        if config.data_of(name) is None and TASKS[name].source is None:
            raise UserError(f"task {name} needs data: give --data FILE (or --data {name}=FILE)")
    for key, least in {"max_rows": 0, "window_tokens": 0, "max_new_tokens": 0, "batch_tokens": 1}.items():
        if getattr(config, key) < least:
            raise UserError(f"--{key} {getattr(config, key)}: must be at least {least}")
    if config.window_tokens == 1:
        raise UserError("--window_tokens 1: a token needs another one before it; must be 0 or at least 2")
    if config.template not in ("tokenizer", "raw") and not Path(config.template).is_file():
        raise UserError(f"--template {config.template}: neither tokenizer nor raw nor a .jinja file")


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
