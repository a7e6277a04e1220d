"""The rows of a task as items: from the user's files, or from the task's own source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.config import Config
from eval.protocols import Task
from eval.tasks.lookup import find, is_file
from zerotune.common.errors import UserError
from zerotune.common.files import sha256_files
from zerotune.data.file_options import DEFAULT
from zerotune.data.files import BadRow, Row, expand
from zerotune.data.hub import Hub, from_hub
from zerotune.data.rows import load, local


def read_items(task: Task[Any], config: Config) -> list[Any]:
    """All items of a task. Raises UserError for bad rows."""
    items = task.arrange(load(rows_of(task, config), task.load))
    if not items:
        raise UserError(f"{', '.join(_files(task, config)) or task.name}: contains no rows")
    return items


def rows_of(task: Task[Any], config: Config) -> Iterable[Row | BadRow]:
    """The rows of a task as read."""
    if files := _files(task, config):
        return local(*files, options=config.file_options if config.data_of(task.name) else DEFAULT)
    if isinstance(task.source, Hub):
        return from_hub(task.source)
    assert isinstance(task.source, tuple)  # `parse` rejects a task without a source
    return task.source


def digests_of(task: Task[Any], config: Config) -> dict[str, str]:
    """File -> sha256, of the task's data and of its YAML file; of a hub data set its revision."""
    files = _files(task, config)
    task_files = [Path(word) for word in config.task_words if is_file(word) and find(word) is task]
    source = None if files else task.source
    hub = {f"hub:{source.path}": source.revision or "newest"} if isinstance(source, Hub) else {}
    paths = [*expand(*files), *task_files]
    return hub | dict(zip(map(str, paths), sha256_files(paths), strict=True))


def _files(task: Task[Any], config: Config) -> list[str]:
    """The files, folders and globs of a task, the user's or its own; empty if its rows come from elsewhere."""
    return config.data_of(task.name) or ([task.source] if isinstance(task.source, str) else [])
