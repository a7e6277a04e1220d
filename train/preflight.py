"""Checks a run's inputs before torch is imported, so that a wrong path is reported within a second."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import psutil

from train.config import Config, SourceConfig
from train.data.rows import Problems, bad_rows_error, check_columns
from train.data.sources import FileSource, find, is_local, options_of
from train.data.templates import require_template
from train.model_sizes import layer_weights, sizes_of
from train.recipe_checks_family import needs_attention
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.common.files import json_object, require_writable
from zerotune.data.fields import Fields, RowError
from zerotune.data.file_options import RowFilter, unmapped
from zerotune.data.formats import FORMATS
from zerotune.data.raw_row import BadRow
from zerotune.data.readers import read
from zerotune.data.text_files import TABLES, begins_slowly, kind_of
from zerotune.models.dequantize import quantization_method, refuse_twice
from zerotune.models.find_folder import local_folder, require_model, require_tokenizer

FIRST_ROWS, FIRST_FILES = 100, 8
NO_ATTENTION = ("zerotune_rnn", "zerotune_lstm", "mamba", "falcon_mamba", "rwkv")  # types in config.json


def check_inputs(config: Config) -> None:
    """Raise UserError with all problems of model folders, data files and their first rows."""
    writable = partial(require_writable, Path(config.run.folder))
    _run([*_model_checks(config), *_data_checks(config), ("run.folder", writable)])


def check_data(config: Config) -> None:
    """Raise UserError with all problems of the tokenizer, data files and their first rows."""
    model, checks = config.model, list(_data_checks(config))
    if model.tokenizer or model.family is None:
        key = "model.tokenizer" if model.tokenizer else "model.path"
        checks.insert(0, (key, partial(_check_tokenizer, model.tokenizer or model.path, key)))
    _run(checks)


def _run(checks: Iterable[tuple[str, Callable[[], None]]]) -> None:
    """Do checks, each with its recipe key."""
    found = []
    for key, check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error) if str(error).startswith(key.partition("[")[0]) else f"{key}: {error}")
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def _model_checks(config: Config) -> Iterator[tuple[str, Callable[[], None]]]:
    if config.model.family is None:
        yield "model.path", partial(_check_model, config)
        if config.tuning.extra_positions:
            yield "tuning.kind", partial(_check_attention, config)
    else:
        yield "model.width", partial(_check_memory, config)
    if config.tuning.quantization != "none":
        yield "tuning.quantization", partial(_check_quantization, config)
    if config.model.tokenizer:
        yield "model.tokenizer", partial(_check_tokenizer, config.model.tokenizer, "model.tokenizer")
    for key, name in getattr(config.settings, "models", {}).items():
        yield key, partial(_check_other, name, key)


def _data_checks(config: Config) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "data.chat_template", partial(require_template, config.data.chat_template)
    for key, source in sources(config):
        yield key, partial(_check_source, source, key, config)


def sources(config: Config) -> Iterator[tuple[str, SourceConfig]]:
    """Pairs of recipe key and source."""
    for name, listed in (("train", config.data.train), ("validation", config.data.validation)):
        for index, source in enumerate(listed):
            yield f"data.{name}[{index}]", source


def _check_model(config: Config) -> None:
    folder = local_folder(config.model.path, "model.path")
    if folder:
        require_model(folder, config.model.init == "pretrained")
        if config.model.init == "pretrained":
            quantization_method(folder)
        if not config.model.tokenizer:
            require_tokenizer(folder)


def _check_attention(config: Config) -> None:
    kind = json_object(Path(config.model.path).expanduser() / "config.json").get("model_type")
    if kind in NO_ATTENTION:
        raise UserError(needs_attention(config, f"and {config.model.path} is of the type {kind}"))


def _check_memory(config: Config) -> None:
    """Refuse a new model whose layers alone do not fit into this machine, whatever the sharding: each process draws
    all weights. Without a GPU, one process that trains them has their gradients too.
    """
    sizes, count, full = sizes_of(config.model), layer_weights(config.model), config.tuning.spec.trains_base
    ranks, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    gradients = full and ranks == 1 and not any(Path("/dev").glob("nvidia[0-9]*"))
    size = 4 if full and config.model.weights in ("auto", "float32") else 2
    needed = count * size * (2 if gradients else here)
    has = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > has:
        what = "weights and gradients" if gradients else f"weights in {here} process{'es' * (here > 1)}"
        raise UserError(
            f"{config.model.family} of width {sizes.width:,} with {counted(sizes.layers, 'layer')}: {count:,} "
            f"parameters besides the embeddings; their {what} need {needed / 2**30:,.1f} GiB, and this machine has "
            f"{has / 2**30:,.1f} GiB. Lower model.width, model.layers, model.feed_forward or model.depth"
        )


def _check_quantization(config: Config) -> None:
    folder = Path(config.model.path).expanduser()
    if folder.is_dir():
        refuse_twice(folder, "tuning.quantization", config.tuning.quantization)


def _check_tokenizer(name: str, key: str) -> None:
    folder = local_folder(name, key)
    if folder:
        require_tokenizer(folder)


def _check_other(name: str, key: str) -> None:
    folder = local_folder(name, key)
    if folder:
        require_model(folder, with_weights=True)
        quantization_method(folder)


def _check_source(config: SourceConfig, key: str, whole: Config) -> None:
    if not is_local(config, key):
        return
    source = find(config, key)
    assert isinstance(source, FileSource)
    may_be_empty = whole.data.streaming and key.startswith("data.train")  # another source may have rows
    problems = _look(source, asks=whole.spec.asks, may_be_empty=may_be_empty)
    if problems.rows and problems.count == problems.rows and whole.data.on_bad_row == "error":
        raise UserError(problems.listed(source.names)[0])  # probably a wrong encoding, delimiter or file type
    if problems.count and whole.data.on_bad_row == "error" and config.fraction == 1:
        raise bad_rows_error([(source, problems)], "the first ")
    if whole.spec.has_columns(whole):
        check_columns(source, problems, "first ")


def _look(source: FileSource, asks: bool, may_be_empty: bool) -> Problems:
    """Problems of the first rows of the first files. asks: whether rows are prompts without answers."""
    problems, seen, is_all = Problems(), dict[str, None](), len(source.files) <= FIRST_FILES
    form, columns = FORMATS[source.config.format], source.config.columns
    for number, file in enumerate(source.files[:FIRST_FILES]):
        if begins_slowly(file):
            is_all = False
            continue
        chosen = RowFilter(source.config.filter)
        for row in itertools.islice(read(file, 0, options_of(source.config)), FIRST_ROWS):
            if isinstance(row, BadRow):
                problems.rows += 1
                problems.add(number, row)
                continue
            seen |= dict.fromkeys(map(str, row.value))
            if chosen.takes(row.value):
                problems.rows += 1
                try:
                    form.read(Fields(row.value, columns, asks))
                except RowError as error:
                    problems.lacks(row.value, error)
        if kind_of(file) in TABLES:
            try:
                chosen.require_columns()
            except UserError as error:
                raise UserError(f"{source.key}.filter: {error}") from error
    if is_all and not seen and not problems.rows and not may_be_empty:
        raise UserError(f"{source.key} ({source.config.path}): there is no row in it; give a file with rows")
    for name, problem in unmapped(columns, seen if is_all else ()):
        raise UserError(f"{source.key}.columns.{name}: {problem}")
    return problems
