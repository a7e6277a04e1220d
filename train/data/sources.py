"""Sources of rows: local files, or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from train.config import SourceConfig
from zerotune.common.errors import UserError
from zerotune.common.files import nearest, sha256_files
from zerotune.data.file_options import FileOptions, RowFilter
from zerotune.data.files import expand
from zerotune.data.formats import FORMATS
from zerotune.data.hub import named
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.read_arrow import without_nulls
from zerotune.data.readers import BINARY, read, reader_of
from zerotune.data.text_files import COMPRESSED, kind_of, open_bytes

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?")
SAMPLE_BYTES = 1 << 20  # of a file, to estimate its number of rows
USUAL_COMPRESSION = 4  # of text, for that estimate


class Place(NamedTuple):
    """Position in a source: the file, rows read of that file, rows read of all files."""

    file: int = 0
    row: int = 0
    number: int = 0


START = Place()


class NumberedRow(NamedTuple):
    """A row, the number of its file in the source, and its number in the source; reading continues at `after`."""

    file: int
    number: int
    item: Row | BadRow
    after: Place


class Source(Protocol):
    """A source of rows. names: of its files, for messages."""

    config: SourceConfig
    key: str  # of the recipe, for messages
    names: list[str]

    def identity(self) -> list[str]:
        """Identifies the content: digests of the files, or the hub's fingerprint."""
        ...

    def quick_identity(self) -> list[str]:
        """The same without reading the content: sizes and modification times."""
        ...

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows in order, including bad ones, read lazily."""
        ...

    def lines(self) -> list[int]:
        """Lines (Parquet, hub: rows) of each file, for a progress bar; empty if unknown."""
        ...

    def guess_rows(self) -> float:
        """A quick estimate of the number of rows."""
        ...


def find(config: SourceConfig, key: str, streaming: bool = False) -> Source:
    """The source of recipe key `key`: files if they exist, else a data set of the hub.

    Raises:
        UserError: There is neither, or `columns` has a field that the format does not have.
    """
    known = FORMATS[config.format].fields
    unknown = [name for name in config.columns if name not in known]
    if unknown:
        raise UserError(
            f"{key}.columns: format `{config.format}` has no field {', '.join(unknown)}; it has {', '.join(known)}."
            " Write it as `field of the format: column of the file`"
        )
    if is_local(config, key):
        try:
            return FileSource(config, key, expand(config.path, split=config.split))
        except UserError as error:
            raise UserError(f"{key}.path: {error}") from None
    hub = HUB_NAME.fullmatch(config.path)
    assert hub
    return HubSource(config, key, hub["name"], hub["subset"], streaming)


def is_local(config: SourceConfig, key: str) -> bool:
    """Whether a source is files and not a data set of the hub: it exists, or cannot be a name of the hub.

    Raises UserError for a missing path next to a similar one that exists.
    """
    place = Path(config.path).expanduser()
    if place.exists() or reader_of(place) or not HUB_NAME.fullmatch(config.path):
        return True
    if "/" in config.path and place.parent.is_dir() and (meant := nearest(place)):
        raise UserError(f"{key}.path: {config.path}: no such file, folder or glob{meant}")
    return False


def options_of(config: SourceConfig) -> FileOptions:
    """Options for reading the files of a source."""
    return FileOptions(config.delimiter, config.encoding, config.filter)


def wanted(rows: Iterator[NumberedRow], config: SourceConfig, key: str, is_whole: bool) -> Iterator[NumberedRow]:
    """The rows that pass the source's filter, and bad rows, whose columns are unknown.

    is_whole: whether these are all rows of the source, so that some must pass.
    """
    chosen = RowFilter(config.filter)
    for row in rows:
        if isinstance(row.item, BadRow) or chosen.takes(row.item.value):
            yield row
    if is_whole:
        try:
            chosen.require_rows()
        except UserError as error:
            raise UserError(f"{key}.{error}") from None


class FileSource:
    """Rows of local files, one file after another."""

    def __init__(self, config: SourceConfig, key: str, files: Sequence[Path]) -> None:
        self.config, self.key, self.files = config, key, files
        self.names = [str(file) for file in files]

    def identity(self) -> list[str]:
        """sha256 of each file."""
        return sha256_files(self.files)

    def quick_identity(self) -> list[str]:
        """Path, size and modification time of each file."""
        stats = [(file.resolve(), file.stat()) for file in self.files]
        return [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows of all files from `start` on that pass the filter."""
        return wanted(self._rows(start), self.config, self.key, start == START)

    def _rows(self, start: Place) -> Iterator[NumberedRow]:
        number, options = start.number, options_of(self.config)
        for file in range(start.file, len(self.files)):
            skip = start.row if file == start.file else 0
            for row, item in enumerate(read(self.files[file], skip, options), start=skip + 1):
                number += 1
                yield NumberedRow(file, number - 1, item, Place(file, row, number))

    def lines(self) -> list[int]:
        """Line feeds of text files, rows of Parquet files."""
        return list(map(_count_lines, self.files))

    def guess_rows(self) -> float:
        """Estimate from the line feeds in the first mebibyte of each file."""
        return sum(map(_guess_rows, self.files))


def _count_lines(file: Path) -> int:
    if kind_of(file) in BINARY:
        return _table_rows(file)
    with open_bytes(file) as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 22), b"")) + 1


def _guess_rows(file: Path) -> float:
    if kind_of(file) in BINARY:
        return _table_rows(file)
    with open_bytes(file) as handle:
        sample = handle.read(SAMPLE_BYTES)
    size = file.stat().st_size * (USUAL_COMPRESSION if file.suffix.lower() in COMPRESSED else 1)
    longer = size / len(sample) if len(sample) == SAMPLE_BYTES else 1.0
    return max(1.0, sample.count(b"\n") * max(longer, 1.0))


def _table_rows(file: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        if kind_of(file) == ".parquet":
            return int(parquet.read_metadata(file).num_rows)
        with pyarrow.memory_map(str(file)) as source:
            return sum(len(batch) for batch in pyarrow.ipc.open_stream(source))
    except pyarrow.ArrowInvalid:
        return 1  # reading it reports the error


class HubSource:
    """Rows of a data set of the Hugging Face hub, `name` or `name:subset`."""

    def __init__(self, config: SourceConfig, key: str, name: str, subset: str | None, streaming: bool) -> None:
        self.config, self.key, self.streaming = config, key, streaming
        self.names = [f"{config.path}/{config.split}"]
        import datasets

        try:
            self.table: Any = datasets.load_dataset(
                name, subset, split=config.split, revision=config.revision, streaming=streaming
            )
        except Exception as error:  # the library has many backends, and passes on their errors
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"{key}.path: `{config.path}` is not a file, folder or glob here{nearest(Path(config.path))},"
                f" and cannot be loaded as a data set of the hub: {reason}"
            ) from error

    def identity(self) -> list[str]:
        """The library's fingerprint of the data set's files."""
        return self.quick_identity() if self.streaming else [str(self.table._fingerprint)]

    def quick_identity(self) -> list[str]:
        """Name, revision and split; without a fixed revision, a change on the hub is not noticed."""
        return [f"{self.config.path} {self.config.revision} {self.config.split}"]

    def rows(self, start: Place = START) -> Iterator[NumberedRow]:
        """All rows from `start` on that pass the filter, classes by name; a row's line is its number."""
        return wanted(self._rows(start), self.config, self.key, start == START)

    def _rows(self, start: Place) -> Iterator[NumberedRow]:
        table = self.table.skip(start.number) if start.number else self.table
        for number, value in enumerate(table, start=start.number):
            values = named(value, table.features or {})
            row = Row(self.names[0], number + 1, {name: without_nulls(inner) for name, inner in values.items()})
            yield NumberedRow(0, number, row, Place(0, number + 1, number + 1))

    def lines(self) -> list[int]:
        """The number of rows, if known."""
        return [] if self.streaming else [len(self.table)]

    def guess_rows(self) -> float:
        """The number of rows, from the hub if it states it."""
        if not self.streaming:
            return float(len(self.table))
        split = (self.table.info.splits or {}).get(self.config.split)
        return float(split.num_examples) if split and split.num_examples else 1e6
