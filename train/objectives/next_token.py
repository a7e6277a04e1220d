"""What objectives over the next token share: rows, steps, and the model with its stop tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from train.config import Config
from train.data.prepare import LabelSpec
from train.objectives.base_model import BaseModel
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Tuning
from zerotune.inference.checkpoint import as_tuple
from zerotune.models import attention


class NextToken(Objective):
    """A causal language model and its rows. model_class: as of `BaseModel`."""

    peft_task_type = "CAUSAL_LM"

    def __init__(self, model_class: Any, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.base = BaseModel(model_class, config, tuning, ranks)
        self.tokenizer = self.base.tokenizer

    def read_data(self) -> None:
        """Tokenise the rows."""
        label_spec = LabelSpec.of(self.config)
        self.data = RowData(self.config, self.base, self.ranks, label_spec, attention.can_pack(self.base.empty))
        self.schedule = self.data.steps()

    @property
    def plan(self) -> Plan:
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {**self.data.metadata, "model": self.base.metadata, **self.base.digests}

    def load_model(self) -> nn.Module:
        """The pretrained or new model, which stops at what ends the answers of the rows."""
        model: Any = self.base.load(self.data.shape.packed)
        own = as_tuple(model.generation_config.eos_token_id)
        model.generation_config.eos_token_id = sorted({*own, *self.data.corpus.stop_ids})
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step, with the counts of all terms."""
        for step in self.schedule.walk(start_step):
            yield [self.counted(batch) for batch in step]

    def counted(self, batch: Batch) -> Batch:
        """The micro-batch with the counts of terms beside the token loss."""
        return batch

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out row."""
        return self.data.first_row
