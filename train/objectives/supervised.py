"""What all objectives that learn from rows have in common: the data, the steps, and how the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from train.cautions import about_positions
from train.config import Config
from train.data.batch import Rows, Shape, collate, micro_batches
from train.data.prepare import Corpus, LabelSpec, StreamingCorpus, prepare, stream
from train.data.run_day import run_day
from train.data.schedule import FixedSteps, Steps
from train.data.stream_schedule import StreamedSteps
from train.models.load import fit_vocabulary, learned_positions, load_model, load_tokenizer, skeleton, unquantized
from train.protocols import Batch, Objective, Plan, Ranks, Tuning
from zerotune.common.errors import UserError
from zerotune.models import attention
from zerotune.models.dequantize import quantization_method
from zerotune.models.digest import config_digest, model_digest
from zerotune.models.folder import resolve
from zerotune.models.precision import DTYPES

log = logging.getLogger(__name__)


class Supervised(Objective):
    """Steps through rows.

    model_class: the Auto class of transformers that loads the model.
    """

    model_class: ClassVar[Any]

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks, label_spec: LabelSpec) -> None:
        self.config, self.tuning, self.ranks, self.label_spec = config, tuning, ranks, label_spec
        self.empty_model = skeleton(self.model_class, config.model)
        self._require_positions()
        self.tokenizer: Any = load_tokenizer(config.model)
        data, seed = config.data, config.run.seed
        self.day = run_day(config.run.folder, ranks)
        self.corpus: Corpus | StreamingCorpus
        self.source: Steps
        self.cautions: list[str] = []
        if data.streaming:
            self.corpus = stream(data, self.tokenizer, seed, ranks, self.day)
            self.shape = self._shape()
            self.source = StreamedSteps(self.corpus.windows, self.shape, seed, config.duration, ranks)
        else:
            self.corpus = prepare(data, self.tokenizer, seed, ranks, label_spec, self.day)
            self.shape = self._shape()
            weights = [source.weight for source in data.train]
            self.source = FixedSteps(self.corpus.train, weights, self.shape, seed, config.duration, ranks)
            longest = int(self.corpus.train.lengths_n.max(initial=0))
            self.cautions = list(about_positions(longest, self.empty_model.config.get_text_config()))
        self.base_quantization = quantization_method(resolve(config.model.path, config.model.revision))
        self.config_digest = config_digest(config.model.path, config.model.revision)
        self.model_digest = model_digest(config.model.path, config.model.revision)

    @property
    def plan(self) -> Plan:
        """Of the data's steps."""
        return self.source.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Data, model and chat template."""
        return {
            "data_digest": self.corpus.digest,
            "data_lines": [*self.corpus.lines, *self.cautions],
            "rows_left_out": self.corpus.rows_left_out,
            "model": {
                "path": self.config.model.path,
                "digest": self.model_digest,
                "config_digest": self.config_digest,
                "quantized": self.base_quantization,
            },
            "template_hash": self.corpus.template_hash,
            **({"template_date": self.day.isoformat()} if self.corpus.reads_clock else {}),
        }

    @property
    def held_out(self) -> Rows | None:
        """The validation rows."""
        rows: Rows | None = self.corpus.validation
        return rows

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step."""
        return self.source.walk(start_step)

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out one."""
        rows = self.held_out
        return [rows.documents(0)[0].ids_t.tolist()] if rows is not None and len(rows) else []

    def can_pack(self, model: nn.Module) -> bool:
        """Whether rows may share one sequence in this model (on the meta device)."""
        return attention.can_pack(model)

    def load(self, options: Mapping[str, Any], new: Sequence[str] = ()) -> Any:
        """The pretrained (or new) model with a row for every token; see `train.models.load.load_model`."""
        config, frozen = self.config.model, DTYPES[self.config.run.precision]
        auto = torch.float32 if self.config.tuning.spec.trains_base else frozen
        attention.register()
        model: Any = load_model(
            self.model_class,
            config,
            dtype=auto if config.weights == "auto" else DTYPES[config.weights],
            attention=attention.implementation(config.attention, self.shape.packed, self.ranks.device, frozen),
            options={**unquantized(self.tuning.load_options(frozen), new), **options},
            seed=self.config.run.seed,
            new=new,
        )
        fit_vocabulary(model, self.tokenizer, self.config.run.seed)
        if getattr(model.config.get_text_config(), "output_router_logits", False) and self.ranks.index == 0:
            log.warning(
                "%s: output_router_logits in config.json asks for the auxiliary loss of a mixture of experts, which is "
                "not learned here: the loss is the objective's alone; watch that all experts stay in use", config.path,
            )  # fmt: skip
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return model

    def held_out_batches(self, rows: Rows, limit: int) -> Iterator[tuple[list[int], Batch]]:
        """This rank's share of the first `limit` rows (0: all), as (rows, micro-batch); equally many on every rank."""
        indices = np.arange(min(len(rows), limit or len(rows)))
        groups = micro_batches(indices, rows.lengths_n, self.shape, self.ranks.count)
        for group in groups[self.ranks.index :: self.ranks.count]:
            yield group, collate(rows, group, self.shape, filler=0).to(self.ranks.device)

    def _require_positions(self) -> None:
        """A longer row would only fail when its turn comes."""
        limit, longest = learned_positions(self.empty_model), self.config.data.max_length_tokens
        in_front = self.config.tuning.extra_positions
        if limit is not None and longest + in_front > limit:
            behind = f" besides the {in_front} of the prompt" if in_front else ""
            raise UserError(
                f"data.max_length_tokens: {longest} are more than the {limit - in_front} positions that "
                f"{self.config.model.path} has{behind}; set it to {limit - in_front} or less"
            )

    def _packed(self) -> bool:
        """Whether several rows share one sequence: where asked for, or where tuning and model allow it."""
        layout = self.config.batch.layout
        if layout == "padded" or not self.config.tuning.spec.can_pack:
            return False
        possible = self.can_pack(self.empty_model)
        if layout == "packed" and not possible:
            raise UserError(
                "batch.layout: rows packed into one sequence would see each other in this model; use padded"
            )
        return possible

    def _shape(self) -> Shape:
        batch, pad = self.config.batch, self.tokenizer.pad_token_id
        return Shape(
            packed=self._packed(),
            tokens_per_step=batch.tokens_per_step,
            tokens_per_micro_batch=batch.tokens_per_micro_batch,
            longest_row=self.config.data.max_length_tokens,
            shuffle=batch.shuffle,
            pad_token_id=0 if pad is None else int(pad),
        )
