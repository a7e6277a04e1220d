"""Tokenises the rows of a source in chunks, in one process or several, and writes a token table."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.data.rows import SHOWN_BAD_ROWS, Problems, joined
from train.data.sources import NumberedRow, Source
from train.data.token_table import TableWriter
from train.data.tokenize import Chunk, Encoder, Settings
from train.failure.heartbeat import HEARTBEAT
from zerotune.common.errors import UserError
from zerotune.data.raw_row import BadRow

CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1_000_000
ROWS_ALONE = 2048  # fewer rows are done before other processes have started


@dataclass
class TableStats:
    """Statistics of the rows of a table; see `Chunk`."""

    problems: Problems = field(default_factory=Problems)
    cut: int = 0
    endless: int = 0
    loose: int = 0
    unreadable: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ends: set[int] = field(default_factory=set)
    asked_otherwise: int = 0

    def add(self, chunk: Chunk) -> None:
        for file, bad in chunk.bad:
            self.problems.add(file, bad)
        self.problems.rows += chunk.rows
        self.problems.missing += chunk.missing
        self.problems.columns = joined(self.problems.columns, chunk.columns)
        self.unreadable += chunk.unreadable
        self.cut += chunk.cut
        self.endless += chunk.endless
        self.loose += chunk.loose
        self.left_out.update(chunk.left_out)
        self.ends |= chunk.ends
        self.asked_otherwise += chunk.asked_otherwise

    def to_json(self) -> dict[str, Any]:
        counts = {"cut": self.cut, "endless": self.endless, "loose": self.loose, "left_out": dict(self.left_out)}
        problems, ends = self.problems.to_json(), sorted(self.ends)
        return {"problems": problems, **counts, "ends": ends, "asked_otherwise": self.asked_otherwise}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableStats:
        problems, left_out = Problems.from_json(value["problems"]), Counter(value["left_out"])
        ends, asked_otherwise = set(value["ends"]), value["asked_otherwise"]
        counts = value["cut"], value["endless"], value["loose"]
        return cls(problems, *counts, left_out=left_out, ends=ends, asked_otherwise=asked_otherwise)


@dataclass(frozen=True)
class Task:
    """Some rows of one source. settings: the index of its settings."""

    settings: int
    rows: Sequence[NumberedRow]
    only_check: bool = False


class Workers:
    """Encoders by index of their settings: in this process for few rows, in `processes` for many (0: one per core).

    Processes are spawned, not forked: this process may have threads, locks and a GPU.
    """

    def __init__(self, settings: Sequence[Settings], processes: int) -> None:
        self.settings = tuple(settings)
        self.processes = processes or len(os.sched_getaffinity(0))
        self.alone = Encoders(self.settings)
        self.rows = 0
        self.pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the processes; `run` starts new ones if needed."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Chunk]]:
        """Each task with its chunk, in order. Takes only as many tasks as keep the processes busy."""
        running: deque[tuple[Task, Future[Chunk]]] = deque()
        for task in tasks:
            self.rows += len(task.rows)
            HEARTBEAT.beat()
            if self.processes == 1 or self.rows <= ROWS_ALONE:
                yield task, self.alone.encode(task)
                continue
            if self.pool is None:
                spawn = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(self.processes, spawn, initializer=_begin, initargs=(self.settings,))
            running.append((task, self.pool.submit(_encode, task)))
            if len(running) > 2 * self.processes:
                yield _result(*running.popleft())
        while running:
            yield _result(*running.popleft())


class Encoders:
    """An encoder for each of several settings, made when first used."""

    def __init__(self, settings: Sequence[Settings]) -> None:
        self.settings, self.made = settings, dict[int, Encoder]()

    def encode(self, task: Task) -> Chunk:
        """The rows of a task as tokens."""
        if task.settings not in self.made:
            self.made[task.settings] = Encoder(self.settings[task.settings])
        return self.made[task.settings].chunk(task.rows, task.only_check)


def _result(task: Task, future: Future[Chunk]) -> tuple[Task, Chunk]:
    try:
        return task, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that tokenises was killed, probably for lack of memory: lower data.workers"
        ) from error


_encoders: Encoders  # of a worker process


def _begin(settings: Sequence[Settings]) -> None:
    global _encoders
    _encoders = Encoders(settings)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already run in parallel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)  # the parent was killed


def _encode(task: Task) -> Chunk:
    return _encoders.encode(task)


def tasks(rows: Iterable[NumberedRow], settings: int, only_check: Callable[[], bool]) -> Iterator[Task]:
    """Groups rows into tasks that are large enough for another process."""
    waiting: list[NumberedRow] = []
    characters = 0
    for row in rows:
        waiting.append(row)
        characters += 0 if isinstance(row.item, BadRow) else _characters(row.item.value)
        if len(waiting) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield Task(settings, waiting, only_check())
            waiting, characters = [], 0
    if waiting:
        yield Task(settings, waiting, only_check())


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 1


def write_table(
    rows: Iterable[NumberedRow],
    settings: int,
    workers: Workers,
    writer: TableWriter,
    strict: bool,
    source: Source | None = None,
) -> TableStats:
    """Encode rows and write them with `writer`.

    strict: the table is not used if a row is bad. So after a row that cannot be read, the others are only checked, and
    after many bad rows, no more are read.
    source: for a progress bar, if these are all its rows.
    """
    stats = TableStats()
    with contextlib.closing(_Bar(source)) as bar:
        for task, chunk in workers.run(tasks(rows, settings, lambda: strict and stats.unreadable > 0)):
            stats.add(chunk)
            writer.append(chunk)
            bar.show(stats.problems.rows, task.rows[-1])
            if strict and stats.problems.count >= SHOWN_BAD_ROWS and stats.problems.rows > ROWS_ALONE:
                stats.problems.is_partial = True
                break
    return stats


class _Bar:
    """A progress bar with the time left, for many rows; it counts lines, whose number is known."""

    def __init__(self, source: Source | None) -> None:
        self.source = source
        self.progress: Progress | None = None

    def close(self) -> None:
        if self.progress:
            self.progress.stop()

    def show(self, rows: int, last: NumberedRow) -> None:
        if rows <= ROWS_ALONE or self.source is None:
            return
        if self.progress is None:
            self.lines = self.source.lines()
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
            total = sum(self.lines) if self.lines else None
            self.task = self.progress.add_task(f"tokenise {self.source.config.path} (lines)", total=total)
            self.progress.start()
        done = sum(self.lines[: last.file]) + last.item.line if self.lines else rows
        self.progress.update(self.task, completed=done)
