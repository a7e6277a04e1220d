"""What objectives with a head on the model have in common: classes or values at the marked tokens of a row.

Shape suffixes: n marks, c outputs of the head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from train.config import Config
from train.data.batch import collate
from train.data.prepare import Corpus, LabelledDataset, LabelSpec
from train.models.load import head_parts
from train.objectives.supervised import Supervised
from train.protocols import Batch, Ranks, Sample, Tuning
from zerotune.common.errors import UserError
from zerotune.models import class_head

log = logging.getLogger(__name__)
POOLER = "pooler"  # of an encoder's body: a checkpoint of a masked language model may have none


@dataclass(frozen=True)
class Said:
    """What the head said of held-out rows, and what it should have: classes as numbers, or values.

    starts: where each row's marks begin in both. is_read_n: whether a mark is measured, not only learned.
    """

    gold_n: NDArray[np.float64]
    said_n: NDArray[np.float64]
    is_read_n: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def of_row(self, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(gold, said) of the marks of one row that are measured."""
        part = slice(self.starts[row], self.starts[row + 1])
        is_read_n = self.is_read_n[part]
        return self.gold_n[part][is_read_n], self.said_n[part][is_read_n]


class Head(Supervised):
    """A new head on a pretrained model.

    Those below say what the loss is, what the head's outputs mean, and how answers are measured.
    """

    lower_is_better: Mapping[str, bool]
    problem: ClassVar[str | None] = None  # as config.json calls it

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks, label_spec: LabelSpec) -> None:
        if config.data.streaming:
            raise UserError(
                f"data.streaming: {config.objective} must know all classes before the first step; set it to false"
            )
        super().__init__(config, tuning, ranks, label_spec)

    @property
    def rows(self) -> LabelledDataset:
        """The training rows."""
        assert isinstance(self.corpus, Corpus)
        assert isinstance(self.corpus.train, LabelledDataset)
        return self.corpus.train

    @property
    def metadata(self) -> Mapping[str, Any]:
        """With the names of the classes."""
        return {**super().metadata, "labels": list(self.rows.labels)}

    def output_names(self) -> Sequence[str]:
        """Of the head's outputs, in order."""
        return self.rows.labels

    def load_model(self) -> nn.Module:
        """The pretrained body with a head whose outputs have names; it starts from the seed."""
        names = dict(enumerate(self.output_names()))
        options: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        if self.config.head.dropout is not None:
            options["classifier_dropout"] = self.config.head.dropout
        if self.problem:
            options["problem_type"] = self.problem
        new = head_parts(self.empty_model)
        if self.config.tuning.spec.trains_base:
            new.append(POOLER)
        model = self.load(options, new)
        if getattr(model, "made_anew", None) and self.ranks.index == 0:
            log.info("not in the checkpoint, so new from the seed: %s", ", ".join(model.made_anew))
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        model.config.pad_token_id = self.tokenizer.pad_token_id
        class_head.install(model)
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step, their counts those of the loss."""
        for step in super().steps(model, start_step):
            yield [self._counted(batch) for batch in step]

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum over the marks."""
        return {"loss": self.criterion(*self.outputs(model, batch))}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """The loss, and how well the held-out rows are answered."""
        rows = self.corpus.validation
        if not isinstance(rows, LabelledDataset):
            return {}
        count = min(len(rows), self.config.validation.max_rows or len(rows))
        golds = [rows.label_values(row) for row in range(count)]
        starts = np.cumsum([0, *(len(gold_n) for _, gold_n in golds)])
        said_n = np.zeros(int(starts[-1]))
        total = weight = 0.0
        model.eval()
        for group, batch in self.held_out_batches(rows, count):
            counted = self._counted(batch)
            outputs_nc, gold_n = self.outputs(model, counted)
            total += float(self.criterion(outputs_nc, gold_n))
            weight += counted.counts["loss"]
            places = [place for row in group for place in range(starts[row], starts[row + 1])]
            said_n[places] = self.decide(outputs_nc).double().cpu().numpy()
        model.train()
        # Every rank holds its own answers and zeros for the others': their sum is all answers, on every rank.
        total, weight, *everything = self.ranks.sum([total, weight, *said_n.tolist()])
        marks_n = np.concatenate([marks for marks, _ in golds])
        said = Said(np.concatenate([gold for _, gold in golds]), np.array(everything), marks_n == 1, starts)
        return {"loss": total / max(weight, 1e-12), **self.measure(rows, said)}

    @torch.no_grad()
    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """The first held-out rows, answered."""
        rows = self.corpus.validation
        if not isinstance(rows, LabelledDataset):
            return []
        model.eval()
        shown = []
        for row in range(min(self.config.validation.samples, len(rows))):
            batch = collate(rows, [row], self.shape, filler=0).to(self.ranks.device)
            outputs_nc, gold_n = self.outputs(model, batch)
            is_read_n = rows.label_values(row)[0] == 1
            said, gold = (x.double().cpu().numpy()[is_read_n] for x in (self.decide(outputs_nc), gold_n))
            texts = [self.tokenizer.decode(d.ids_t.tolist(), skip_special_tokens=True) for d in rows.documents(row)]
            shown.append(Sample("\n".join(texts), self.show_row(rows, row, said), self.show_row(rows, row, gold)))
        model.train()
        return shown

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(outputs_nc in float32, gold_n) at the marks."""
        raise NotImplementedError

    def criterion(self, outputs_nc: Tensor, gold_n: Tensor) -> Tensor:
        """The summed loss."""
        raise NotImplementedError

    def weight(self, gold_n: Tensor) -> float:
        """What the summed loss of these marks is divided by."""
        return float(len(gold_n))

    def decide(self, outputs_nc: Tensor) -> Tensor:
        """[n]: the class, or the value, that the outputs mean."""
        raise NotImplementedError

    def measure(self, rows: LabelledDataset, said: Said) -> Mapping[str, float]:
        """The metrics beside the loss."""
        raise NotImplementedError

    def show_row(self, rows: LabelledDataset, row: int, answers_n: NDArray[np.float64]) -> str:
        """The answers at the marks of a row, in words."""
        return self.show(answers_n)

    def show(self, answers_n: NDArray[np.float64]) -> str:
        """Answers in words."""
        labels = self.rows.labels
        return " ".join(labels[int(answer)] if labels else f"{answer:.4g}" for answer in answers_n)

    def _counted(self, batch: Batch) -> Batch:
        return replace(batch, counts={"loss": self.weight(batch.targets[~batch.targets.isnan()])})


class SequenceHead(Head):
    """A head that speaks of whole sequences."""

    model_class = AutoModelForSequenceClassification
    peft_task_type = "SEQ_CLS"

    def can_pack(self, model: nn.Module) -> bool:
        """Only where the head can speak more than once a row."""
        return super().can_pack(model) and class_head.predicts_at_positions(model)

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Once for each document."""
        return class_head.sequence_outputs(model, batch.inputs, batch.targets)
