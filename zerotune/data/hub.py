"""Rows of a public data set on the Hugging Face hub, for tasks whose data the user does not name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerotune.common.errors import UserError
from zerotune.data.fields import RowError
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.read_arrow import without_nulls


@dataclass(frozen=True)
class Hub:
    """Where a task's rows come from when the user names no file.

    split and name (of a part): one, or several separated by commas. files: which of the repository's files hold them,
    with {name} and {split} in it; for data sets whose own layout `datasets` does not read, and for large ones, of which
    it would fetch every split.
    columns: what the task reads -> the data set's column, or a template over them (`zerotune.data.row_templates`); none
    where the task reads them as they are. classes: a column -> the names of the numbers in it, where the data set does
    not know them.
    where: a Jinja expression over the data set's columns; a row for which it does not hold is no row of this source
    (the documentation says which ones those are).
    """

    path: str
    split: str
    name: str | None = None
    revision: str | None = None
    files: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: str | None = None


def from_hub(source: Hub) -> Iterator[Row | BadRow]:
    """The rows of all its parts and splits; a row's file is `hub:PATH/NAME/SPLIT`, its line the place in there.

    Raises UserError where it cannot be had.
    """
    from zerotune.data.row_templates import cell, condition  # jinja2: not for --help

    cells = {column: cell(text, column) for column, text in source.columns.items()}
    belongs = condition(source.where, "where") if source.where else None
    for name in source.name.split(",") if source.name else [None]:
        for split in source.split.split(","):
            file = "/".join(part for part in (f"hub:{source.path}", name, split) if part)
            for number, value in enumerate(_values(source, name, split), start=1):
                try:
                    if belongs is None or belongs(value):
                        yield Row(file, number, {column: of(value) for column, of in cells.items()} or value)
                except RowError as error:
                    yield BadRow(file, number, str(error))


def _values(source: Hub, name: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    """What each row holds, classes by their names."""
    dataset = _load(source, name, split)
    features = {
        column: _classed(feature, source.classes[column]) if column in source.classes else feature
        for column, feature in dataset.features.items()
    }
    for value in dataset:
        yield {column: without_nulls(inner) for column, inner in named(value, features).items()}


def _load(source: Hub, name: str | None, split: str) -> Any:
    from datasets import load_dataset  # takes seconds: only who reads from the hub waits for it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # ten lines about retries would bury the message
    try:
        if source.files is None:
            return load_dataset(source.path, name, split=split, revision=source.revision)
        files = source.files.format(name=name, split=split)
        return load_dataset(source.path, data_files=files, split="train", revision=source.revision)
    except Exception as error:  # whatever the hub, the network or a cache may say
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the data set {source.path} cannot be read from the hub ({said}); name a local copy with --data FILE"
        ) from error


def _classed(feature: Any, names: Sequence[str]) -> Any:
    """The feature, its numbers being those of classes."""
    from datasets import ClassLabel, List

    return List(_classed(feature.feature, names)) if isinstance(feature, List) else ClassLabel(names=list(names))


def named(value: Any, feature: Any) -> Any:
    """The value with names in place of the numbers of classes, however deep; a number that is no class is null."""
    from datasets import ClassLabel, LargeList, List

    if isinstance(feature, ClassLabel):
        return feature.names[value] if value is not None and 0 <= value < feature.num_classes else None
    if isinstance(feature, (List, LargeList)) and value is not None:
        return [named(inner, feature.feature) for inner in value]
    if isinstance(feature, Mapping) and value is not None:
        return {key: named(inner, feature.get(key)) for key, inner in value.items()}
    return value
