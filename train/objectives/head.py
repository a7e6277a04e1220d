"""Objectives with a head on the model: classes or values at the label positions of a row.

Shape suffixes: n label positions, c outputs of the head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from train.config import Config
from train.data.micro_batches import collate
from train.data.prepare import LabelledDataset, LabelSpec
from train.models.load import head_parts
from train.objectives.base_model import BaseModel
from train.objectives.head_losses import HeadLoss
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Sample, Tuning
from zerotune.common.errors import UserError
from zerotune.models import attention, class_head

log = logging.getLogger(__name__)
POOLER = "pooler"  # of an encoder; checkpoints of masked language models may not have it


@dataclass(frozen=True)
class Readout:
    """How a kind of head is loaded and run.

    model_class: the Auto class of transformers.
    outputs: (model, inputs, targets) -> (outputs_nc in float32, gold_n). can_pack: see `RowData`.
    """

    model_class: Any
    outputs: Callable[[nn.Module, Mapping[str, Any], Tensor], tuple[Tensor, Tensor]]
    can_pack: Callable[[nn.Module], bool]


TOKENS = Readout(AutoModelForTokenClassification, class_head.token_outputs, attention.can_pack)
SEQUENCES = Readout(
    AutoModelForSequenceClassification,
    class_head.sequence_outputs,
    # Only where the head can predict more than once a row.
    lambda model: attention.can_pack(model) and class_head.predicts_at_positions(model),
)


@dataclass(frozen=True)
class Predictions:
    """Gold labels and predictions of held-out rows: numbers of classes, or values.

    starts: where each row's label positions begin in the arrays. is_measured_n: False for a label position that is
    trained but not part of metrics.
    """

    gold_n: NDArray[np.float64]
    predicted_n: NDArray[np.float64]
    is_measured_n: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def of_row(self, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(gold, predicted) of the measured label positions of one row."""
        part = slice(self.starts[row], self.starts[row + 1])
        is_measured_n = self.is_measured_n[part]
        return self.gold_n[part][is_measured_n], self.predicted_n[part][is_measured_n]


class Head(Objective):
    """Trains a new head on a pretrained model.

    A subclass chooses the readout and the loss (criterion), names the outputs, and computes its metrics.
    problem: the `problem_type` in config.json.
    """

    readout: ClassVar[Readout] = SEQUENCES
    problem: ClassVar[str | None] = None
    criterion: HeadLoss
    output_names: Sequence[str]

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        if config.data.streaming:
            raise UserError(
                f"data.streaming: {config.objective} needs all classes before the first step; set it to false"
            )
        self.config, self.ranks = config, ranks
        self.base = BaseModel(self.readout.model_class, config, tuning, ranks)
        self.tokenizer = self.base.tokenizer
        label_spec = LabelSpec.of(config)
        self.data = RowData(config, self.base, ranks, label_spec, self.readout.can_pack(self.base.empty))
        self.schedule = self.data.steps()

    @property
    def rows(self) -> LabelledDataset:
        """The training data."""
        rows = self.data.train
        assert isinstance(rows, LabelledDataset)
        return rows

    @property
    def plan(self) -> Plan:
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {**self.data.metadata, "model": self.base.metadata, "labels": list(self.rows.labels)}

    def load_model(self) -> nn.Module:
        """The pretrained model with a new, randomly initialised head whose outputs are named."""
        names = dict(enumerate(self.output_names))
        options: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        if self.config.head.dropout is not None:
            options["classifier_dropout"] = self.config.head.dropout
        if self.problem:
            options["problem_type"] = self.problem
        new = head_parts(self.base.empty)
        if self.config.tuning.spec.trains_base:
            new.append(POOLER)
        model = self.base.load(self.data.shape.packed, options, new)
        if getattr(model, "newly_initialized", None) and self.ranks.index == 0:
            log.info("not in the checkpoint, newly initialised: %s", ", ".join(model.newly_initialized))
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        model.config.pad_token_id = self.tokenizer.pad_token_id
        class_head.install(model)
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step, with the counts of the loss."""
        for step in self.schedule.walk(start_step):
            yield [self._counted(batch) for batch in step]

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum over the label positions."""
        return {"loss": self.criterion(*self._outputs(model, batch))}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """The loss and the metrics on held-out rows."""
        rows = self.data.corpus.validation
        if not isinstance(rows, LabelledDataset):
            return {}
        count = min(len(rows), self.config.validation.max_rows or len(rows))
        labels = [rows.label_values(row) for row in range(count)]
        starts = np.cumsum([0, *(len(gold_n) for _, gold_n in labels)])
        predicted_n = np.zeros(int(starts[-1]))
        total = weight = 0.0
        model.eval()
        for group, batch in self.data.held_out_batches(rows, count):
            counted = self._counted(batch)
            outputs_nc, gold_n = self._outputs(model, counted)
            total += float(self.criterion(outputs_nc, gold_n))
            weight += counted.counts["loss"]
            places = [place for row in group for place in range(starts[row], starts[row + 1])]
            predicted_n[places] = self.criterion.predict(outputs_nc).double().cpu().numpy()
        model.train()
        # Every rank holds its own predictions and zeros for the others': their sum is all of them, on every rank.
        total, weight, *everything = self.ranks.sum([total, weight, *predicted_n.tolist()])
        mask_n, all_gold_n = (np.concatenate(parts) for parts in zip(*labels, strict=True))
        predictions = Predictions(all_gold_n, np.array(everything), mask_n == 1, starts)
        return {"loss": total / max(weight, 1e-12), **self.metrics(rows, predictions)}

    @torch.no_grad()
    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """The first held-out rows with predictions and gold labels."""
        rows = self.data.corpus.validation
        if not isinstance(rows, LabelledDataset):
            return []
        model.eval()
        shown = []
        for row in range(min(self.config.validation.samples, len(rows))):
            batch = collate(rows, [row], self.data.shape, filler=0).to(self.ranks.device)
            outputs_nc, gold_n = self._outputs(model, batch)
            found = (self.criterion.predict(outputs_nc), gold_n)
            predicted, gold = (x.double().cpu().numpy()[rows.label_values(row)[0] == 1] for x in found)
            texts = [self.tokenizer.decode(d.ids_t.tolist(), skip_special_tokens=True) for d in rows.documents(row)]
            shown.append(Sample("\n".join(texts), self.show(rows, row, predicted), self.show(rows, row, gold)))
        model.train()
        return shown

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out row."""
        return self.data.first_row

    def metrics(self, rows: LabelledDataset, predictions: Predictions) -> Mapping[str, float]:
        """The metrics besides the loss."""
        raise NotImplementedError

    def show(self, rows: LabelledDataset, row: int, values_n: NDArray[np.float64]) -> str:
        """Labels or predictions at the label positions of a row, as text."""
        return " ".join(rows.labels[int(value)] if rows.labels else f"{value:.4g}" for value in values_n)

    def _outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.readout.outputs(model, batch.inputs, batch.targets)

    def _counted(self, batch: Batch) -> Batch:
        return replace(batch, counts={"loss": self.criterion.count(batch.targets[~batch.targets.isnan()])})
