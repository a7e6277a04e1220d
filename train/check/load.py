"""Loads the rows of a recipe as a run does: the same tokenizer, settings and token cache."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.config import Config
from train.data.held_out import is_first, split
from train.data.label_encoder import LabelSpec
from train.data.learn_tokenizer import learn_tokenizer
from train.data.proof import Inference
from train.data.rows import SHOWN_BAD_ROWS
from train.data.setup import Setup, Spec, run_day, set_up
from train.data.stream_dataset import stream
from train.data.token_cache import load_parts
from train.data.token_dataset import Part
from train.data.tokenize_workers import TableStats
from train.models.load import load_tokenizer
from zerotune.models.numeric import add_token


class Alone:
    """One process, as `train.protocols.Ranks`."""

    index, count, device = 0, 1, torch.device("cpu")

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def barrier(self) -> None:
        pass

    def whole(self, model: Any) -> Any:
        raise NotImplementedError

    whole_copy = whole


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source in one split; windows of a long text are rows of their own.

    name: for the report. stats: of all rows of the source; None for rows that were held out of a training source.
    """

    name: str
    spec: Spec
    is_training: bool
    parts: Sequence[Part]
    stats: TableStats | None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def column(self, name: str) -> NDArray[Any]:
        """A value of every row."""
        return np.concatenate([part.column(name) for part in self.parts])

    @property
    def first_n(self) -> NDArray[np.bool_]:
        """A mask of the first window of each source row."""
        return is_first(self.column("number_n"))

    def find(self, row: int) -> tuple[Part, int]:
        """(part, number in its table) of a row."""
        for part in self.parts:
            if row < len(part):
                return part, part.where(row)
            row -= len(part)
        raise IndexError(row)

    def place(self, row: int) -> str:
        """`file:line` of a row."""
        part, number = self.find(row)
        return part.place(number)

    def places(self, is_found_n: NDArray[np.bool_], most: int) -> list[str]:
        """`file:line` of the first rows of a mask."""
        return [self.place(row) for row in np.flatnonzero(is_found_n)[:most].tolist()]


@dataclass(frozen=True)
class Loaded:
    """All rows. cut: whether a stream has more of them. lines: about chat template and tokenizer."""

    config: Config
    tokenizer: Any
    setup: Setup
    label_spec: LabelSpec
    sources: Sequence[SourceRows]
    cut: bool
    lines: Sequence[str]

    def of(self, is_training: bool) -> list[SourceRows]:
        """The sources of one split."""
        return [source for source in self.sources if source.is_training == is_training]

    @cached_property
    def inference(self) -> Inference:
        """What a checkpoint of this run makes of rows."""
        ends = {token for rows in self.of(True) if rows.stats for token in rows.stats.ends}
        day, name = self.setup.day, self.config.model.name
        return Inference(self.config.data, self.label_spec, self.tokenizer, day, ends, name)


def load(config: Config, most_rows: int) -> Loaded:
    """All rows of a recipe; bad ones are counted, whatever data.on_bad_row says. most_rows: of a stream.

    Raises UserError as `train.data.prepare.prepare`.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_row="skip"))
    tokenizer, lines = _tokenizer(config)
    label_spec, day = LabelSpec.of(config), run_day(config.run.folder, Alone())
    if config.data.streaming:
        corpus = stream(config.data, tokenizer, config.run.seed, Alone(), day, label_spec)
        parts, cut = _windows(corpus.windows(0), most_rows)
        sources = _grouped(corpus.setup.train, parts, "", True)
        held = list(corpus.validation.parts) if corpus.validation is not None else []
        sources += _grouped(corpus.setup.validation, held, "", False)
        return Loaded(config, tokenizer, corpus.setup, label_spec, sources, cut, [*lines, *corpus.setup.lines])
    setup, seed = set_up(config.data, tokenizer, label_spec, day), config.run.seed
    train, _ = load_parts(setup.train, config.data, seed, Alone())
    held, _ = load_parts(setup.validation, config.data, seed, Alone())
    if config.data.validation_fraction and not held:
        train, held = split(train, config.data.validation_fraction, seed)
        sources = [*_grouped(setup.train, train, "", True), *_grouped(setup.train, held, " held out", False)]
    else:
        sources = [*_grouped(setup.train, train, "", True), *_grouped(setup.validation, held, "", False)]
    return Loaded(config, tokenizer, setup, label_spec, sources, False, [*lines, *setup.lines])


def _tokenizer(config: Config) -> tuple[Any, list[str]]:
    """The tokenizer of the run, and lines about it. That of a new model is learned as the run does; nothing is kept."""
    model, lines = config.model, list[str]()
    if model.family is None or model.tokenizer:
        tokenizer: Any = load_tokenizer(model, weights=False)
    else:
        learned, lines = learn_tokenizer(config.tokenizer, config.data, config.run.seed, LabelSpec.of(config))
        with tempfile.TemporaryDirectory() as folder:  # read back as from the run folder, for the same cache entry
            if config.spec.numbers:
                add_token(learned)
            learned.save_pretrained(folder)
            tokenizer = load_tokenizer(dataclasses.replace(model, path=str(Path(folder))))
    if config.spec.numbers:
        add_token(tokenizer)
    return tokenizer, lines


def _windows(windows: Iterable[Any], most_rows: int) -> tuple[list[Part], bool]:
    """(parts of the first windows of a stream, whether it has more)."""
    parts, rows = list[Part](), 0
    for window in windows:
        if rows >= most_rows:
            return parts, True
        parts += window.parts
        rows += len(window)
    return parts, False


def _grouped(specs: Sequence[Spec], parts: Sequence[Part], suffix: str, is_training: bool) -> list[SourceRows]:
    found = []
    for spec in specs:
        own = [part for part in parts if part.source == spec.number]
        stats = None if suffix else _joined_stats(own)
        found.append(SourceRows(f"{spec.key}{suffix}", spec, is_training, own, stats))
    return [source for source in found if source.parts]


def _joined_stats(parts: Sequence[Part]) -> TableStats:
    """The statistics of several tables of one source."""
    total = TableStats()
    for part in parts:
        own = TableStats.from_json(part.table.manifest)
        total.problems.rows += own.problems.rows
        total.problems.count += own.problems.count
        total.problems.kinds.update(own.problems.kinds)
        total.problems.first = [*total.problems.first, *own.problems.first][:SHOWN_BAD_ROWS]
        total.cut += own.cut
        total.asked_otherwise += own.asked_otherwise
        total.left_out.update(own.left_out)
        total.ends |= own.ends
    return total
