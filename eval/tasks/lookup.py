"""Finds the tasks of --tasks: built-in tasks by name, and YAML files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from eval.protocols import Task
from eval.tasks import TASKS
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.common.suggest import did_you_mean

ENDINGS = (".yaml", ".yml")


def is_file(word: str) -> bool:
    """Whether the word is the path of a task file."""
    return word.endswith(ENDINGS)


@cache
def find(word: str) -> Task[Any]:
    """The task of a word in --tasks. Raises UserError if there is none, or its file is invalid."""
    if not is_file(word):
        if word not in TASKS:
            known = f"; use {', '.join(TASKS)}, or a task file: FILE.yaml"
            raise UserError(f"unknown task {word}{did_you_mean(word, TASKS) or known}")
        return TASKS[word]
    path = Path(word)
    if not path.is_file():
        raise UserError(f"{word}: there is no such file{nearest(path)}")
    from eval.tasks.from_yaml import task_from_yaml  # imports Jinja, which is slow for --help

    task = task_from_yaml(path)
    if task.name in TASKS:
        raise UserError(f"{word}: name: {task.name} is a built-in task; choose another name")
    return task
