"""The readers of data files, by the ending of their names.

Text must be UTF-8 unless another encoding is given; `sentence@label` lines may be ISO-8859-1. A row that cannot be read
is yielded with its reason, never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from zerotune.common.errors import UserError
from zerotune.data import text_files
from zerotune.data.file_options import DEFAULT, FileOptions
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.read_arrow import read_arrow, read_parquet
from zerotune.data.read_csv import read_csv
from zerotune.data.read_json import read_json, read_jsonl
from zerotune.data.read_text import read_conll, read_text

Reader = Callable[[Path, int, FileOptions], Iterator[Row | BadRow]]  # of a file, without its first rows
READERS: Mapping[str, Reader] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": partial(read_csv, usual="\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text,
    ".conll": read_conll,
    ".iob": read_conll,
    ".iob2": read_conll,
}
BINARY = (".parquet", ".arrow")  # not text, and never compressed as a whole


def reader_of(path: Path) -> Reader | None:
    """The reader of a file of this name; None if there is none."""
    kind = text_files.kind_of(path)
    return None if kind in BINARY and path.suffix.lower() != kind else READERS.get(kind)


def read(path: Path, skip: int = 0, options: FileOptions = DEFAULT) -> Iterator[Row | BadRow]:
    """The rows of one file in order, read lazily, without the first `skip` (good and bad). Does not apply the filter.

    A JSON array is held in memory, and so is a document of a text file.

    Raises:
        UserError: The file cannot be opened, or uncompressed.
    """
    reader = reader_of(path)
    assert reader, path
    try:
        yield from reader(path, skip, options)
    except text_files.BROKEN as error:
        raise text_files.broken(path, error) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
