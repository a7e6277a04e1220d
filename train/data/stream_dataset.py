"""Streams data in windows, each read when it is needed: for corpora that exceed memory, and to start at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from train.config import DataConfig
from train.data.held_out import NO_OVERLAP, without_overlap
from train.data.label_encoder import TO_PREDICT, LabelSpec
from train.data.mixture import Mark, Mixture, marks_from_json, marks_to_json
from train.data.rank_sync import from_first, together
from train.data.rows import bad_rows_error
from train.data.setup import Setup, Spec, set_up
from train.data.sources import NumberedRow, Source, find
from train.data.token_cache import encode_table, entry_key, load_parts, notes
from train.data.token_dataset import Encoded, Part
from train.data.token_table import TokenTable, cache_root, folder_of, is_whole
from train.data.tokenize import Encoder
from train.data.tokenize_workers import CHUNK_ROWS, Workers
from train.protocols import Ranks
from zerotune.common.cache_home import make_folder
from zerotune.common.errors import UserError
from zerotune.common.files import write_atomically

# Formats that ENCODER_VERSION 3 and 4 encode alike: a run that began with version 3 can resume.
UNCHANGED_FORMATS = ("text", "qa", "pr")


@dataclass
class StreamingCorpus:
    """A training stream, and fixed validation data. Fields as in `train.data.prepare.Corpus`; `rows_left_out` counts
    the windows so far.
    """

    validation: Encoded | None
    lines: list[str]
    digest: str
    template_hash: str
    reads_clock: bool
    stop_ids: tuple[int, ...]
    config: DataConfig = field(repr=False)
    setup: Setup = field(repr=False)
    seed: int
    ranks: Ranks = field(repr=False)
    content: str  # digest of everything that determines the content of the windows
    names: list[list[str]] = field(repr=False)  # of the files of each source
    rows_left_out: int = 0
    _reader: _Reader | None = field(default=None, repr=False)

    def windows(self, epoch: int, start: int = 0) -> Iterator[Encoded]:
        """The windows of one epoch in order, from number `start` on. A collective. A window may be empty.

        Each is tokenised once and cached: a resumed run or a second epoch does not read it again.

        Raises:
            UserError: Bad rows, on every rank, when their window is reached.
        """
        number, found = start, False
        try:
            while True:
                window = from_first(self.ranks, partial(self._ensure, epoch, number))
                rows = together(self.ranks, partial(self._open, window, epoch, number))
                found = found or len(rows) > 0
                self.rows_left_out += window["bad"]
                yield rows
                if window["last"]:
                    break
                number += 1
        finally:
            if self._reader:
                self._reader.workers.close()
        if not found and not start:
            few = [
                f"{spec.key}.{name} ({share:g})"
                for spec in self.setup.train
                for name, share in (("weight", spec.config.weight), ("fraction", spec.config.fraction))
                if share < 1
            ]
            fix = f"; {' and '.join(few)} may be too small for so few rows: raise it" if few else ""
            raise UserError(f"data.train: there is no row to learn from in any source{fix}")

    def _ensure(self, epoch: int, number: int) -> dict[str, Any]:
        if self._reader is None:
            self._reader = _Reader(self.config, self.setup.train, self.seed, self.content)
        return self._reader.window(epoch, number)

    def _open(self, window: dict[str, Any], epoch: int, number: int) -> Encoded:
        root = cache_root(self.config)
        folders = [folder_of(root, key) for _, key in window["tables"]]
        are_here = all(is_whole(folder, thorough=False) for folder in folders)
        if not are_here and self._ensure(epoch, number)["tables"] != window["tables"]:  # a node with its own cache
            raise UserError(
                "data.train: the files on this node differ from the first node's; put data or cache on a shared disk"
            )
        parts = [
            Part(TokenTable(folder), source, self.names[source])
            for folder, (source, _) in zip(folders, window["tables"], strict=True)
        ]
        notes = list(window["notes"])
        if self.validation is not None and any(map(len, parts)):
            parts, overlap = without_overlap(parts, self.validation.parts, self.config.on_overlap)
            notes += [line for line in overlap if line != NO_OVERLAP]
        return Encoded(parts, [f"window {number}: {line}" for line in notes], self.setup.number_token)


class _Reader:
    """Reads windows from the sources: on the first rank, and once on each node that does not share its cache."""

    def __init__(self, config: DataConfig, specs: Sequence[Spec], seed: int, content: str) -> None:
        self.config, self.specs, self.seed, self.content = config, specs, seed, content
        self.root = cache_root(config)
        self.sources: list[Source] = [find(spec.config, spec.key, streaming=True) for spec in specs]
        self.workers = Workers([spec.settings for spec in specs], config.workers)
        self.mixture: Mixture | None = None
        self.at = (-1, -1)  # epoch and window that the mixture gives next
        # With whole-number weights, every epoch has the same rows, and so the same windows.
        self.is_repeating = all(float(spec.config.weight).is_integer() for spec in specs)

    def _path(self, epoch: int, number: int) -> Path:
        return self.root.with_name("windows") / f"{self._key(epoch, number)}.json"

    def _key(self, epoch: int, number: int) -> str:
        return hashlib.sha256(f"{self.content} {0 if self.is_repeating else epoch} {number}".encode()).hexdigest()

    def _known(self, epoch: int, number: int) -> dict[str, Any] | None:
        try:
            window: dict[str, Any] = json.loads(self._path(epoch, number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = all(is_whole(folder_of(self.root, key), thorough=True) for _, key in window["tables"])
        return window if whole else None

    def window(self, epoch: int, number: int) -> dict[str, Any]:
        """A window as JSON. tables: (source, cache key). last: whether the epoch ends here. notes: for the user."""
        window = self._known(epoch, number)
        if window and (self.config.on_bad_row == "skip" or not window["bad"]):
            return window
        if self.at != (epoch, number) or self.mixture is None:
            self.mixture = self._mixture_at(epoch, number)
        taken = self.mixture.take(self.config.streaming_window_rows)
        self.at = (epoch, number + 1)
        window = self._encode(self._key(epoch, number), taken)
        window |= {"last": self.mixture.is_over, "marks": marks_to_json(self.mixture.marks)}
        make_folder(self._path(epoch, number).parent, self.root.parent)
        write_atomically(self._path(epoch, number), json.dumps(window, ensure_ascii=False))
        return window

    def _mixture_at(self, epoch: int, number: int) -> Mixture:
        before = self._known(epoch, number - 1) if number else None
        marks = marks_from_json(before["marks"]) if before else [Mark() for _ in self.sources]
        mixture = Mixture(self.sources, self.seed, epoch, marks)
        if number and not before:  # its record is lost: skip the rows without tokenising them
            for _ in range(number):
                mixture.take(self.config.streaming_window_rows)
        return mixture

    def _encode(self, key: str, taken: Sequence[Sequence[NumberedRow]]) -> dict[str, Any]:
        tables, lines, found = [], list[str](), []
        for number, (spec, source, rows) in enumerate(zip(self.specs, self.sources, taken, strict=True)):
            if rows:
                table_key = entry_key([key, spec.key], spec, self.seed)
                _, stats = encode_table(source, rows, table_key, number, self.config, self.workers)
                tables.append([number, table_key])
                found.append((source, stats.problems))
                lines += [f"{spec.key}: {note}" for note in notes(stats, spec, source.names)]
        bad = sum(problems.count for _, problems in found)
        if bad and self.config.on_bad_row == "error":
            raise bad_rows_error(found)
        return {"tables": tables, "notes": lines, "bad": bad}


def stream(
    config: DataConfig,
    tokenizer: Any,
    seed: int,
    ranks: Ranks,
    day: date | None = None,
    label_spec: LabelSpec = TO_PREDICT,
) -> StreamingCorpus:
    """A corpus whose training rows are read window by window. A collective.

    Validation data are prepared completely.

    Raises:
        UserError: As `prepare`; bad rows of the training data only when their window is reached.
    """
    setup = set_up(config, tokenizer, label_spec, day)

    def describe() -> list[Any]:
        sources = [find(spec.config, spec.key, streaming=True) for spec in setup.train]
        pairs = list(zip(setup.train, sources, strict=True))
        contents = [_content(pairs, seed, config.streaming_window_rows, kept) for kept in ((), UNCHANGED_FORMATS)]
        # The tokens that end the answers of the first rows; a stream cannot be read in advance.
        first = [(spec, list(islice(source.rows(), CHUNK_ROWS))) for spec, source in pairs]
        ends = {token for spec, rows in first for token in Encoder(spec.settings).chunk(rows).ends}
        return [*contents, [source.names for source in sources], sorted(ends)]

    content, bound, names, ends = from_first(ranks, describe)
    held, lines = load_parts(setup.validation, config, seed, ranks)
    validation = Encoded(held, number_token=setup.number_token) if held else None
    digest = hashlib.sha256(f"{bound} {validation.digest if validation else ''} {setup.template_hash}".encode())
    streamed = [
        f"{spec.key} {spec.config.path} ({spec.config.format}): streamed by {config.streaming_window_rows:,} rows"
        for spec in setup.train
    ]
    return StreamingCorpus(
        validation=validation,
        lines=[*setup.lines, *streamed, *lines],
        digest=digest.hexdigest(),
        template_hash=setup.template_hash,
        reads_clock=setup.reads_clock,
        stop_ids=tuple(ends),
        config=config,
        setup=setup,
        seed=seed,
        ranks=ranks,
        content=content,
        names=names,
    )


def _content(pairs: Sequence[tuple[Spec, Source]], seed: int, window_rows: int, kept: Sequence[str]) -> str:
    """sha256 of everything that determines the content of the windows. kept: formats to identify as in version 3."""
    described = []
    for spec, source in pairs:
        version = {"version": 3} if spec.config.format in kept else {}
        described.append([entry_key(source.quick_identity(), spec, seed, **version), spec.config.weight])
    return hashlib.sha256(json.dumps([described, seed, window_rows]).encode()).hexdigest()
