"""Checks an evaluation's inputs and outputs before torch is imported."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.config import Config
from eval.protocols import Task
from zerotune.common.errors import UserError
from zerotune.common.files import require_writable
from zerotune.data.fields import RowError
from zerotune.data.file_options import DEFAULT, FileOptions, RowFilter, unmapped
from zerotune.data.files import expand, read
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.rows import refused, with_options
from zerotune.data.text_files import TABLES, begins_slowly, kind_of
from zerotune.models.find_folder import require_checkpoint

FIRST_ROWS, FIRST_FILES = 10, 8


def check_inputs(config: Config) -> None:
    """Check checkpoint folders, data files, their first rows, and output folders.

    Raises one UserError with all problems.
    """
    found = []
    for option, check in _checks(config):
        try:
            check()
        except UserError as error:
            found.append(f"{option}: {error}" if option else str(error))
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def _checks(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield checks, each with its option if its message does not name it."""
    yield from (("", partial(require_checkpoint, folder)) for folder in config.folders)
    if config.encoder:
        yield "--encoder", partial(require_checkpoint, config.encoder)
    for task in config.chosen_tasks:
        given = config.data_of(task.name)
        for path in given or ([task.source] if isinstance(task.source, str) else []):
            yield "", partial(_check_files, path, task, config.file_options if given else DEFAULT)
    if config.columns:
        yield "", partial(_check_columns, config)
    yield from (("", partial(expand, path)) for path in config.training_data)
    yield "--out", partial(require_writable, Path(config.out))
    if config.tensorboard:
        yield "--tensorboard", partial(require_writable, Path(config.tensorboard))


def _check_files(path: str, task: Task[Any], options: FileOptions) -> None:
    """Raise UserError if files are missing, or the task accepts none of the first rows of the first file."""
    file = expand(path)[0]
    if begins_slowly(file):
        return
    chosen = RowFilter(options.filter)
    first = list(itertools.islice(read(file, 0, options), FIRST_ROWS))
    bad = [_problem(row, task, options) for row in first if isinstance(row, BadRow) or chosen.takes(row.value)]
    if bad and all(bad):
        raise UserError(str(bad[0]))
    if kind_of(file) in TABLES:
        try:
            chosen.require_columns()
        except UserError as error:
            raise UserError(f"--filter: {error}") from error


def _check_columns(config: Config) -> None:
    """Raise UserError if --columns names a column that is in none of the first rows of all files."""
    paths = [path for task in config.chosen_tasks for path in config.data_of(task.name)]
    files = expand(*paths)
    if len(files) > FIRST_FILES or any(map(begins_slowly, files)):
        return
    rows = [row for file in files for row in itertools.islice(read(file, 0, config.file_options), FIRST_ROWS)]
    seen = dict.fromkeys(str(name) for row in rows if isinstance(row, Row) for name in row.value)
    columns = config.file_options.columns
    for name, problem in unmapped(columns, seen):
        raise UserError(f"--columns {name}={columns[name]}: {problem}")


def _problem(row: Row | BadRow, task: Task[Any], options: FileOptions) -> BadRow | None:
    """Why the task rejects a row, else None. Single bad rows are reported later, with all others."""
    if isinstance(row, BadRow):
        return with_options(row)
    try:
        task.load(replace(row, value=options.renamed(row.value)))
    except RowError as error:
        return refused(row, error)
    return None
