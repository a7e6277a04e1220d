"""Reads Parquet files, and the Arrow files of data sets that `datasets` saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerotune.data.file_options import FileOptions
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.saved_datasets import classes, named


def read_parquet(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        yield BadRow(str(path), 1, f"not a Parquet file: {error}")
        return
    if reason := _repeated(table.schema_arrow.names):
        yield BadRow(str(path), 1, f"not a valid Parquet file: {reason}")
        return
    with table:
        line = 0
        for group in range(table.num_row_groups):
            if line + table.metadata.row_group(group).num_rows <= skip:
                line += table.metadata.row_group(group).num_rows
                continue
            for batch in table.iter_batches(batch_size=1024, row_groups=[group]):
                for offset in range(max(0, skip - line), len(batch)):
                    yield _row(str(path), line + offset + 1, batch, offset)
                line += len(batch)


def read_arrow(path: Path, skip: int, options: FileOptions) -> Iterator[Row | BadRow]:
    """Classes become their names."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            table = pyarrow.ipc.open_stream(source)
            if reason := _repeated(table.schema.names):
                yield BadRow(str(path), 1, f"not a valid Arrow file: {reason}")
                return
            features = classes(table.schema)
            line = 0
            for batch in table:
                for offset in range(max(0, skip - line), len(batch)):
                    row = _row(str(path), line + offset + 1, batch, offset)
                    if isinstance(row, Row):
                        row = replace(row, value={name: named(v, features.get(name)) for name, v in row.value.items()})
                    yield row
                line += len(batch)
    except pyarrow.ArrowInvalid as error:
        yield BadRow(str(path), 1, f"not an Arrow file: {error}")


def _repeated(names: Sequence[str]) -> str:
    repeated = sorted({name for name in names if names.count(name) > 1})
    return f"it repeats the columns {', '.join(repeated)}" if repeated else ""


def _row(file: str, line: int, batch: Any, offset: int) -> Row | BadRow:
    try:
        values = {name: batch.column(name)[offset].as_py(maps_as_pydicts="strict") for name in batch.schema.names}
        return Row(file, line, {name: without_nulls(value) for name, value in values.items()})
    except KeyError as error:
        return BadRow(file, line, f"a map holds a key twice: {error}")
    except UnicodeDecodeError as error:
        return BadRow(file, line, f"not UTF-8: byte 0x{error.object[error.start]:02x}")


def without_nulls(value: Any) -> Any:
    """A value without keys that are null, at any depth.

    In a table every object has every key of any object, so that a null cannot be told from a missing key.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
