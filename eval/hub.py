"""Rows of a public data set on the Hugging Face hub, for tasks whose data the user does not name."""

from __future__ import annotations

from collections.abc import Iterator

from eval.errors import UserError
from eval.protocols import Hub
from eval.readers import Row


def from_hub(source: Hub) -> Iterator[Row]:
    """The rows of all its splits; a row's file is `hub:NAME/SPLIT`. Raises UserError where it cannot be had."""
    from datasets import load_dataset  # takes seconds: only who reads from the hub waits for it

    for split in source.split.split(","):
        try:
            rows = load_dataset(source.path, source.name, split=split, revision=source.revision)
        except Exception as error:  # whatever the hub, the network or a cache may say
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the data set {source.path} cannot be read from the hub ({said}); name a local copy with --data FILE"
            ) from error
        for number, value in enumerate(rows, start=1):
            yield Row(f"hub:{source.path}/{split}", number, value)
