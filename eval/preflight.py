"""What can be known of an evaluation's inputs before torch is imported."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

from eval.config import Config
from zerotune.common.errors import UserError
from zerotune.data.files import expand, read
from zerotune.data.readers import BadRow
from zerotune.data.text_files import begins_slowly
from zerotune.models.checkpoint_folder import require_checkpoint

FIRST_ROWS = 10


def check_inputs(config: Config) -> None:
    """Raises UserError with everything wrong with the checkpoints' folders and the data's files."""
    found = []
    for check in _checks(config):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def _checks(config: Config) -> Iterator[Callable[[], object]]:
    yield from (partial(require_checkpoint, folder) for folder in config.folders)
    for path in dict.fromkeys(path for task in config.task_names for path in config.data_of(task)):
        yield partial(_check_files, path, config)
    yield from (partial(expand, path) for path in config.training_data)


def _check_files(path: str, config: Config) -> None:
    """Raises UserError where files are not there, or no first row of the first can be read."""
    file = expand(path)[0]
    if begins_slowly(file):
        return
    first = list(itertools.islice(read(file, 0, config.file_options), FIRST_ROWS))
    if first and all(isinstance(row, BadRow) for row in first):
        raise UserError(str(first[0]))
