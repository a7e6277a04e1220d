"""Prepares a recipe's data: reads, checks, tokenises once, splits, and checks for overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

from train.config import DataConfig
from train.data.held_out import split, without_overlap
from train.data.label_encoder import TO_PREDICT, LabelSpec
from train.data.setup import set_up
from train.data.stream_dataset import StreamingCorpus, stream
from train.data.token_cache import load_parts
from train.data.token_dataset import Encoded, LabelledDataset, Part
from train.protocols import Ranks
from zerotune.common.errors import UserError

__all__ = ["Corpus", "Encoded", "LabelSpec", "LabelledDataset", "StreamingCorpus", "prepare", "stream"]


@dataclass(frozen=True)
class Corpus:
    """The data of a run.

    lines: for the user, ready to print. rows_left_out: skipped rows of the training data.
    digest: of both splits and the weights.
    template_hash: sha256 of the chat template; empty without one. reads_clock: whether the tokens depend on the run's
    day. stop_ids: tokens that end an answer.
    """

    train: Encoded
    validation: Encoded | None
    lines: list[str]
    rows_left_out: int
    digest: str
    template_hash: str
    reads_clock: bool
    stop_ids: tuple[int, ...]


def prepare(
    config: DataConfig,
    tokenizer: Any,
    seed: int,
    ranks: Ranks,
    label_spec: LabelSpec = TO_PREDICT,
    day: date | None = None,
) -> Corpus:
    """All rows as tokens. A collective. Sets the chat template (and a pad token) on the tokenizer.

    day: the date for chat templates that read the clock; by default today.

    Raises:
        UserError: Bad rows, no rows, unknown files, an unusable template: one message, on every rank.
    """
    setup = set_up(config, tokenizer, label_spec, day)
    train, train_lines = load_parts(setup.train, config, seed, ranks)
    lines = [*setup.lines, *train_lines]
    rows_left_out = sum(part.table.manifest["problems"]["count"] for part in train)
    held, held_lines = load_parts(setup.validation, config, seed, ranks)
    lines += held_lines
    if not held and config.validation_fraction:
        train, held = split(train, config.validation_fraction, seed)
        lines.append(f"held out for validation: {config.validation_fraction:.1%} of the rows, drawn with seed {seed}")
    if held:
        train, overlap_lines = without_overlap(train, held, config.on_overlap)
        if not any(map(len, train)):
            raise UserError(f"{overlap_lines[0]}, which leaves no row (data.on_overlap: drop)")
        lines += overlap_lines
    for part in train:
        _check_weight(part, config.train[part.source].weight)
    weights = ",".join(str(source.weight) for source in config.train)
    form = (
        partial(LabelledDataset, label_spec=label_spec, labels=_labels(train, label_spec))
        if label_spec.has_labels
        else partial(Encoded, number_token=setup.number_token)
    )
    train_rows, held_rows = form(train), form(held) if held else None
    parts = [train_rows.digest, held_rows.digest if held_rows else "", weights, setup.template_hash]
    return Corpus(
        train=train_rows,
        validation=held_rows,
        lines=lines,
        rows_left_out=rows_left_out,
        digest=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        template_hash=setup.template_hash,
        reads_clock=setup.reads_clock,
        stop_ids=tuple(sorted({token for part in train for token in part.table.manifest["ends"]})),
    )


def _labels(parts: Sequence[Part], label_spec: LabelSpec) -> tuple[str, ...]:
    """The recipe's classes, or all classes of the training data: O first, numbers in order."""
    if label_spec.labels_as == "values":
        return ()
    if label_spec.labels:
        return label_spec.labels
    found = {name for part in parts for name in part.table.manifest["labels"]}
    return tuple(sorted(found, key=lambda name: (name != "O", int(name) if name.isdecimal() else -1, name)))


def _check_weight(part: Part, weight: float) -> None:
    if len(part) and round(weight * len(part)) < 1:
        raise UserError(
            f"data.train[{part.source}].weight: {weight:g} of {len(part)} row(s) is less than one row per epoch;"
            " raise it, or remove the source"
        )
