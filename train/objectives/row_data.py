"""The rows of a run, tokenised, and the micro-batches of its steps and of its validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from train.config import Config
from train.data.micro_batches import Rows, Shape, collate, micro_batches
from train.data.prepare import Corpus, Encoded, LabelSpec, StreamingCorpus, prepare, stream
from train.data.proof import Inference, about_requests
from train.data.schedule import FixedSteps, Steps
from train.data.setup import run_day
from train.data.stream_schedule import StreamedSteps
from train.objectives.base_model import BaseModel
from train.protocols import Batch, Ranks
from train.recipe_warnings import about_positions
from zerotune.common.errors import UserError


class RowData:
    """The recipe's `data`, tokenised for `base`. Sets the chat template (and a pad token) on its tokenizer.

    can_pack: whether objective and model separate rows that share one sequence.
    shape: of micro-batches. day: the date for chat templates that contain the current date.
    """

    def __init__(self, config: Config, base: BaseModel, ranks: Ranks, label_spec: LabelSpec, can_pack: bool) -> None:
        data, seed, tokenizer = config.data, config.run.seed, base.tokenizer
        self.config, self.ranks, self.day = config, ranks, run_day(config.run.folder, ranks)
        packed = _is_packed(config, can_pack)
        self.corpus: Corpus | StreamingCorpus
        self.lines: list[str] = []
        if data.streaming:
            self.corpus = stream(data, tokenizer, seed, ranks, self.day, label_spec)
        else:
            self.corpus = prepare(data, tokenizer, seed, ranks, label_spec, self.day)
            longest = int(self.corpus.train.lengths_n.max(initial=0))
            self.lines += about_positions(longest, base.empty.config.get_text_config())
            if ranks.index == 0:
                self.lines += self._compared(self.corpus, tokenizer, label_spec)
        self.shape = Shape(
            packed=packed,
            tokens_per_step=config.batch.tokens_per_step,
            tokens_per_micro_batch=config.batch.tokens_per_micro_batch,
            longest_row=data.max_length_tokens,
            shuffle=config.batch.shuffle,
            pad_token_id=0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        )

    def _compared(self, corpus: Corpus, tokenizer: Any, label_spec: LabelSpec) -> list[str]:
        """Lines about the first rows, compared with the requests of evaluation."""
        config = self.config
        if getattr(config.settings, "task", None):
            return []  # an evaluation task makes the prompts
        try:
            inference = Inference(config.data, label_spec, tokenizer, self.day, corpus.stop_ids, config.model.name)
            return about_requests(inference, config.data.train, corpus.train.parts)
        except Exception as error:  # a report must not end a run that works without it
            return [f"the first rows were not compared with evaluation: {error}"]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Which data it is, for run.json and checkpoints."""
        return {
            "data_digest": self.corpus.digest,
            "data_lines": [*self.corpus.lines, *self.lines],
            "rows_left_out": self.corpus.rows_left_out,
            "template_hash": self.corpus.template_hash,
            **({"template_date": self.day.isoformat()} if self.corpus.reads_clock else {}),
        }

    @property
    def train(self) -> Encoded:
        """The training rows; not available if they are streamed."""
        assert isinstance(self.corpus, Corpus)
        return self.corpus.train

    @property
    def first_row(self) -> list[list[int]]:
        """Token ids of the first held-out row; empty if there is none."""
        rows = self.corpus.validation
        return [rows.documents(0)[0].ids_t.tolist()] if rows is not None and len(rows) else []

    def steps(self) -> Steps:
        """The optimizer steps over the training rows, and the plan of the run."""
        seed, duration = self.config.run.seed, self.config.duration
        if isinstance(self.corpus, StreamingCorpus):
            return StreamedSteps(self.corpus.windows, self.shape, seed, duration, self.ranks)
        weights = [source.weight for source in self.config.data.train]
        return FixedSteps(self.corpus.train, weights, self.shape, seed, duration, self.ranks)

    def held_out_batches(self, rows: Rows, limit: int) -> Iterator[tuple[Sequence[int], Batch]]:
        """This rank's share of the first `limit` rows (0: all), as (rows, micro-batch); equally many on every rank."""
        indices = np.arange(min(len(rows), limit or len(rows)))
        groups = micro_batches(indices, rows.lengths_n, self.shape, self.ranks.count)
        for group in groups[self.ranks.index :: self.ranks.count]:
            yield group, collate(rows, group, self.shape, filler=0).to(self.ranks.device)


def _is_packed(config: Config, can_pack: bool) -> bool:
    """Whether several rows share one sequence."""
    layout = config.batch.layout
    if layout == "padded" or not config.tuning.spec.can_pack:
        return False
    if layout == "packed" and not can_pack:
        raise UserError("batch.layout: this model cannot separate rows that are packed into one sequence; use padded")
    return can_pack
