"""Rows of a public data set on the Hugging Face hub, for tasks whose data the user does not name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eval.errors import UserError
from eval.protocols import Hub
from eval.readers import Row


def from_hub(source: Hub) -> Iterator[Row]:
    """The rows of all its parts and splits; a row's file is `hub:PATH/NAME/SPLIT`.

    Raises UserError where it cannot be had.
    """
    for name in source.name.split(",") if source.name else [None]:
        for split in source.split.split(","):
            file = "/".join(part for part in (f"hub:{source.path}", name, split) if part)
            for number, value in enumerate(_load(source, name, split), start=1):
                yield Row(file, number, value)


def _load(source: Hub, name: str | None, split: str) -> Any:
    from datasets import load_dataset  # takes seconds: only who reads from the hub waits for it

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
