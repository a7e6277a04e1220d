"""Where rows come from: local files, or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from eval.files import expand, nearest, read, sha256_file
from eval.hub import named
from eval.readers import READERS, BadRow, Row, without_nulls
from train.config import SourceConfig
from train.data.formats import FORMATS
from train.errors import UserError

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?")
SAMPLE_BYTES = 1 << 20  # of a file, to guess how many rows it holds


class Place(NamedTuple):
    """How far a source has been read: the file, rows of that file, rows of all files."""

    file: int = 0
    row: int = 0
    number: int = 0


START = Place()


class NumberedRow(NamedTuple):
    """A row, the number of its file in the source, and its number in the source; `after` is where reading goes on."""

    file: int
    number: int
    item: Row | BadRow
    after: Place


class Source(Protocol):
    """Where rows come from. names: of its files, for messages."""

    config: SourceConfig
    key: str  # of the recipe, for messages
    names: list[str]

    def identity(self) -> list[str]:
        """What tells this content from any other: digests of the files, or the hub's fingerprint."""
        ...

    def quick_identity(self) -> list[str]:
        """The same without reading the content: sizes and times of change."""
        ...

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows in order, bad ones among them, read as they are asked for."""
        ...

    def lines(self) -> list[int]:
        """Lines (Parquet, hub: rows) of each file, for a progress bar; empty where unknown."""
        ...

    def guess_rows(self) -> float:
        """About how many rows there are, found quickly."""
        ...


def find(config: SourceConfig, key: str, streaming: bool = False) -> Source:
    """The source that a recipe names under `key`: files if there are any of that name, else a data set of the hub.

    Raises:
        UserError: There is neither, or the `columns` name a field that the format does not have.
    """
    known = FORMATS[config.format].fields
    unknown = [name for name in config.columns if name not in known]
    if unknown:
        raise UserError(
            f"{key}.columns: format `{config.format}` has no field {', '.join(unknown)}; it has {', '.join(known)}."
            " Write it as `our field: column of the file`"
        )
    if not 0 < config.fraction <= 1:
        raise UserError(f"{key}.fraction must lie in (0, 1], not {config.fraction}")
    if not config.path:
        raise UserError(f"{key}.path is empty: name a file, a folder, a glob or a hub data set")
    place = Path(config.path).expanduser()
    hub = HUB_NAME.fullmatch(config.path)
    if hub is None or place.exists() or place.suffix.lower() in READERS:
        try:
            return FileSource(config, key, expand(config.path))
        except UserError as error:
            raise UserError(f"{key}.path: {error}") from None
    return HubSource(config, key, hub["name"], hub["subset"], streaming)


class FileSource:
    """Rows of local files, one file after another."""

    def __init__(self, config: SourceConfig, key: str, files: Sequence[Path]) -> None:
        self.config, self.key, self.files = config, key, files
        self.names = [str(file) for file in files]

    def identity(self) -> list[str]:
        """sha256 of each file."""
        with ThreadPoolExecutor() as threads:  # hashing lets go of the interpreter's lock
            return list(threads.map(sha256_file, self.files))

    def quick_identity(self) -> list[str]:
        """Path, size and time of change of each file."""
        stats = [(file.resolve(), file.stat()) for file in self.files]
        return [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows of all files from `start` on."""
        number = start.number
        for file in range(start.file, len(self.files)):
            skip = start.row if file == start.file else 0
            for row, item in enumerate(read(self.files[file], skip), start=skip + 1):
                number += 1
                yield NumberedRow(file, number - 1, item, Place(file, row, number))

    def lines(self) -> list[int]:
        """Line feeds of text files, rows of Parquet files."""
        return list(map(_count_lines, self.files))

    def guess_rows(self) -> float:
        """From the line feeds in the first mebibyte of each file."""
        return sum(map(_guess_rows, self.files))


def _count_lines(file: Path) -> int:
    if file.suffix.lower() == ".parquet":
        return _parquet_rows(file)
    with file.open("rb") as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 22), b"")) + 1


def _guess_rows(file: Path) -> float:
    if file.suffix.lower() == ".parquet":
        return _parquet_rows(file)
    with file.open("rb") as handle:
        sample = handle.read(SAMPLE_BYTES)
    return max(1.0, sample.count(b"\n") * file.stat().st_size / max(len(sample), 1))


def _parquet_rows(file: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file).num_rows)
    except pyarrow.ArrowInvalid:
        return 1  # reading it says what is wrong


class HubSource:
    """Rows of a data set of the Hugging Face hub; `name:subset` where it has several."""

    def __init__(self, config: SourceConfig, key: str, name: str, subset: str | None, streaming: bool) -> None:
        self.config, self.key, self.streaming = config, key, streaming
        self.names = [f"{config.path}/{config.split}"]
        import datasets

        try:
            self.table: Any = datasets.load_dataset(
                name, subset, split=config.split, revision=config.revision, streaming=streaming
            )
        except Exception as error:  # the library raises whatever its many backends raise
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"{key}.path: `{config.path}` is no file, folder or glob here{nearest(Path(config.path))},"
                f" and as a data set of the hub it cannot be loaded: {reason}"
            ) from error

    def identity(self) -> list[str]:
        """The library's fingerprint of the data set's files."""
        return self.quick_identity() if self.streaming else [str(self.table._fingerprint)]

    def quick_identity(self) -> list[str]:
        """Name, revision and split: pin the revision, or a change on the hub goes unnoticed."""
        return [f"{self.config.path} {self.config.revision} {self.config.split}"]

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows from `start` on, classes by their names; the line of a row is its number."""
        table = self.table.skip(start.number) if start.number else self.table
        for number, value in enumerate(table, start=start.number):
            values = named(value, table.features or {})
            row = Row(self.names[0], number + 1, {name: without_nulls(inner) for name, inner in values.items()})
            yield NumberedRow(0, number, row, Place(0, number + 1, number + 1))

    def lines(self) -> list[int]:
        """The number of rows, where it is known."""
        return [] if self.streaming else [len(self.table)]

    def guess_rows(self) -> float:
        """What the hub says."""
        if not self.streaming:
            return float(len(self.table))
        split = (self.table.info.splits or {}).get(self.config.split)
        return float(split.num_examples) if split and split.num_examples else 1e6
