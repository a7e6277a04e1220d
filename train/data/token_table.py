"""Token tables on disk: memory-mapped Arrow files in a content-addressed cache, written completely or not at all.

Shape suffixes: n rows, k tokens of several rows one after another, t tokens of one row.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console

from train.config import DataConfig
from train.data.tokenize import Chunk
from zerotune.common.cache_home import cache_home, make_folder, share_file
from zerotune.common.files import cannot_write, sync, write_atomically
from zerotune.common.mask_secrets import printable

TABLE, MANIFEST = "tokens.arrow", "manifest.json"
ROWS_AT_ONCE, TOKENS_AT_ONCE = 8192, 4_000_000  # of one record batch
BATCHES_OF_VALUES = 64  # read for the typical values of numbers
PATIENCE_SECONDS = 5.0  # of waiting for a lock without a message
COLUMNS = ("file_n", "line_n", "sharing_n", "number_n", "full_n", "prompt_n", "second_n")
SCHEMA = pa.schema(
    [
        ("ids", pa.large_list(pa.int32())),
        ("learned", pa.large_list(pa.uint8())),
        ("gold", pa.large_list(pa.float64())),
        ("file_n", pa.int32()),
        ("line_n", pa.int64()),
        ("sharing_n", pa.int64()),
        ("number_n", pa.int64()),
        ("full_n", pa.uint64()),
        ("prompt_n", pa.uint64()),
        ("second_n", pa.int32()),
        ("learned_n", pa.int32()),
    ]
)


class TableWriter:
    """Writes chunks, in order, to a folder's token table. Memory is bounded by one record batch."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE
        self.sink = pa.OSFile(str(self.path), "wb")
        self.writer = pa.ipc.new_file(self.sink, SCHEMA)
        self.waiting: list[Chunk] = []
        self.hashes = [hashlib.sha256() for _ in range(5)]
        self.labels: dict[str, int] = {}
        self.rows = self.tokens = self.learned = 0

    def append(self, chunk: Chunk) -> None:
        if chunk.labels:
            numbers = np.array([self.labels.setdefault(name, len(self.labels)) for name in chunk.labels], np.float64)
            chunk.values_g = numbers[chunk.values_g.astype(np.int64)]
        self.waiting.append(chunk)
        rows = sum(len(c.lengths_n) for c in self.waiting)
        if rows >= ROWS_AT_ONCE or sum(len(c.ids_k) for c in self.waiting) >= TOKENS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        chunks, self.waiting = [c for c in self.waiting if len(c.lengths_n)], []
        if not chunks:
            return
        ids_k = np.concatenate([c.ids_k for c in chunks])
        learned_k = np.concatenate([c.learned_k for c in chunks])
        lengths_n = np.concatenate([c.lengths_n for c in chunks])
        values_g = np.concatenate([c.values_g for c in chunks])
        values_n = np.concatenate([c.values_n for c in chunks])
        offsets = np.concatenate([[0], np.cumsum(lengths_n, dtype=np.int64)])
        value_offsets = np.concatenate([[0], np.cumsum(values_n, dtype=np.int64)])
        learned_n = np.add.reduceat(learned_k != 0, offsets[:-1], dtype=np.int32)
        for digest, array in zip(self.hashes, (ids_k, learned_k, lengths_n, values_g, values_n), strict=True):
            digest.update(array.tobytes())
        plain = [pa.array(np.concatenate([getattr(c, name) for c in chunks])) for name in COLUMNS]
        lists = [
            pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
            for ends, values in ((offsets, ids_k), (offsets, learned_k), (value_offsets, values_g))
        ]
        self.writer.write_batch(pa.record_batch([*lists, *plain, pa.array(learned_n)], schema=SCHEMA))
        self.rows += len(lengths_n)
        self.tokens += len(ids_k)
        self.learned += int(learned_n.sum(dtype=np.int64))

    def close(self) -> dict[str, Any]:
        """Finish the file. Returns the entries of its manifest. digest: sha256 of tokens, learned masks and labels."""
        self._write()
        self.writer.close()
        self.sink.close()
        sync(self.path)
        names = json.dumps(list(self.labels), ensure_ascii=False).encode()
        digest = hashlib.sha256(b"".join([*(part.digest() for part in self.hashes), names])).hexdigest()
        return {
            "table_rows": self.rows,
            "tokens": self.tokens,
            "learned": self.learned,
            "labels": list(self.labels),
            "digest": digest,
            "size": self.path.stat().st_size,
            "crc32": _crc32(self.path),
        }


class TokenTable:
    """A committed token table, memory-mapped: opening is fast for any size."""

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest(folder)
        reader = pa.ipc.open_file(pa.memory_map(str(folder / TABLE)))
        self.batches: Sequence[Any] = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.starts_b = np.cumsum([0, *(len(batch) for batch in self.batches)], dtype=np.int64)
        self.lists = [(_list(batch, "ids"), _list(batch, "learned")[1]) for batch in self.batches]
        self.label_lists = [_list(batch, "gold") for batch in self.batches]

    def __len__(self) -> int:
        return int(self.starts_b[-1])

    def column(self, name: str) -> NDArray[Any]:
        """A value of every row; `lengths_n` is the number of tokens."""
        if name == "lengths_n":
            parts = [np.diff(offsets).astype(np.int32) for (offsets, _), _ in self.lists]
        else:
            parts = [_values(batch.column(name)) for batch in self.batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def tokens(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """(token ids, learned mask) of row `index`; 0 means not learned."""
        batch, row = self._find(index)
        (offsets, ids_k), learned_k = self.lists[batch]
        start, end = int(offsets[row]), int(offsets[row + 1])
        return ids_k[start:end], learned_k[start:end]

    def label_values(self, index: int) -> NDArray[np.float64]:
        """The labels at the label positions of row `index`, or the values of its numbers; empty if it has none."""
        batch, row = self._find(index)
        offsets, values_g = self.label_lists[batch]
        return values_g[int(offsets[row]) : int(offsets[row + 1])]

    def learned_values(self, number_token: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """(row, value) of the numbers that are learned, batch by batch; of a large table, of some batches."""
        for b in range(0, len(self.batches), -(-len(self.batches) // BATCHES_OF_VALUES) or 1):
            start, ((_, ids_k), learned_k), (offsets, values_g) = self.starts_b[b], self.lists[b], self.label_lists[b]
            is_learned_g = learned_k[ids_k == number_token] != 0
            row_g = np.repeat(np.arange(start, start + len(offsets) - 1), np.diff(offsets))
            yield row_g[is_learned_g], values_g[is_learned_g]

    def _find(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self.starts_b, index, side="right")) - 1
        return batch, index - int(self.starts_b[batch])

    def place(self, index: int) -> tuple[int, int, int]:
        """(file, line, number in the file if several rows share the line, else 0) of row `index`."""
        batch, row = self._find(index)
        columns = self.batches[batch]
        file, line, number = (columns.column(name)[row].as_py() for name in ("file_n", "line_n", "sharing_n"))
        return file, line, number


def _list(batch: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    column = batch.column(name)
    return _values(column.offsets), _values(column.values)


def _values(array: Any) -> NDArray[Any]:
    """Like `array.to_numpy()`, which would import pandas, for a third of a second."""
    kind = np.dtype(array.type.to_pandas_dtype())
    start = array.offset * kind.itemsize
    return np.frombuffer(memoryview(array.buffers()[1])[start : start + len(array) * kind.itemsize], kind)


def cache_root(config: DataConfig) -> Path:
    """The folder of all token tables."""
    return cache_home(config.cache_folder) / "tokens"


def folder_of(root: Path, key: str) -> Path:
    """The folder of one entry."""
    return root / key[:2] / key


def manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a committed entry."""
    content: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return content


def is_whole(folder: Path, thorough: bool) -> bool:
    """Whether an entry is committed and its table has the recorded size; thorough: and checksum."""
    try:
        recorded = manifest(folder)
        path = folder / TABLE
        return path.stat().st_size == recorded["size"] and (not thorough or _crc32(path) == recorded["crc32"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def obtain(root: Path, key: str, build: Callable[[TableWriter], dict[str, Any] | None]) -> bool:
    """Make sure that the cache has entry `key`. Returns whether it was built.

    build: appends the rows and returns more entries for the manifest, or None to keep no entry.
    A second process that needs the same entry waits for the first. A damaged entry is built again.

    Raises:
        CannotWriteError: No space, no permission.
    """
    folder = folder_of(root, key)
    if is_whole(folder, thorough=True):
        return False
    try:
        make_folder(folder.parent, root.parent)
        with _locked(Path(f"{folder}.lock"), root.parent):
            if is_whole(folder, thorough=True):  # another run was faster
                return False
            for leftover in folder.parent.glob(f"{key}.tmp-*"):  # of a killed run: this process has the lock
                shutil.rmtree(leftover)
            if folder.exists():
                shutil.rmtree(folder)
            draft = folder.with_name(f"{key}.tmp-{os.getpid()}")
            draft.mkdir()
            try:
                _write(draft, build)
                if (draft / MANIFEST).exists():
                    draft.replace(folder)
                    sync(folder.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            return True
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextmanager
def _locked(path: Path, home: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        message = printable(f"waiting for another run, which tokenises the same data ({path})")
        Console(stderr=True).print(message, soft_wrap=True, markup=False)
        lock.acquire()
    share_file(path, home)
    try:
        yield
    finally:
        lock.release()


def _write(draft: Path, build: Callable[[TableWriter], dict[str, Any] | None]) -> None:
    writer = TableWriter(draft)
    more = build(writer)
    table = writer.close()
    if more is not None:
        write_atomically(draft / MANIFEST, json.dumps({**table, **more}, ensure_ascii=False, indent=1))


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 22), b""):
            value = zlib.crc32(block, value)
    return value
