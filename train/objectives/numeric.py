"""Next-token prediction in which numbers are values: each is one token, whose value is read and predicted.

Shape suffixes: b rows, t positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.config_numeric import NumericConfig
from train.data.prepare import LabelSpec
from train.models.load import seeded
from train.objectives.base_model import BaseModel
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Tuning
from zerotune.inference.checkpoint import as_tuple
from zerotune.models import attention, numeric

INTERVAL = 0.9  # share of values that the central interval in the metrics should hold


class NumericLM(Objective):
    """Fine-tuning and pre-training with a numeric embedding, and Cauchy distributions of values."""

    peft_task_type = "CAUSAL_LM"

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.numeric: NumericConfig = config.settings
        self.base = BaseModel(numeric.AutoNumericLM, config, tuning, ranks)
        numeric.require_plain_logits(self.base.empty)
        self.tokenizer = self.base.tokenizer
        token = numeric.add_token(self.tokenizer)
        settings = self.numeric
        self.settings = numeric.Settings(
            token, settings.value_space, settings.token_loss, settings.threshold, settings.copy
        )
        label_spec = LabelSpec(labels=tuple(config.head.labels), numbers=True)
        self.data = RowData(config, self.base, ranks, label_spec, attention.can_pack(self.base.empty))
        self.schedule = self.data.steps()
        # Only the first is a mean of -log p, with a perplexity.
        self.token_term = "loss" if settings.token_loss == "softmax" else "one_vs_rest"
        self.terms = (self.token_term, "value")

    @property
    def plan(self) -> Plan:
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {**self.data.metadata, "model": self.base.metadata, **self.base.digests}

    def load_model(self) -> nn.Module:
        """The pretrained or new model, with a row for `<NUM>` that every tuning trains."""
        model = self.base.load(self.data.shape.packed)
        own = as_tuple(model.generation_config.eos_token_id)
        model.generation_config.eos_token_id = sorted({*own, *self.data.corpus.stop_ids})
        numeric.train_rows(model)
        ready: nn.Module = model
        return ready

    def add_modules(self, model: nn.Module) -> nn.Module:
        """Adds the numeric embedding, abduction and action."""
        with seeded(self.config.run.seed):
            numeric.add(model, self.settings)
        return model

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step, with the counts of both terms."""
        for step in self.schedule.walk(start_step):
            yield [self._counted(batch) for batch in step]

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out row."""
        return self.data.first_row

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums of the token loss over the trained tokens, and of the weighted values over the trained numbers."""
        tokens, values = numeric.losses(model, batch.inputs, batch.targets, self.numeric.gate)
        return {self.token_term: tokens, "value": self.numeric.weight * values}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Means over held-out tokens and numbers.

        number_recall, number_precision: of `<NUM>` as the most probable token. interval_90: share of the values inside
        their central 90 % interval. value_loss: mean -log density, without weight and gate.
        """
        rows = self.data.corpus.validation
        if rows is None:
            return {}
        model.eval()
        sums = torch.zeros(8, dtype=torch.float64)
        for _, batch in self.data.held_out_batches(rows, self.config.validation.max_rows):
            counts = self._counted(batch).counts
            terms = torch.stack([*self.loss(model, batch).values()])
            found = numeric.predictions(model, batch.inputs, batch.targets)
            is_top_n, is_number_n = found.rank_n == 1, found.is_number_n
            inside_m = (found.values.quantile(0.5 - INTERVAL / 2) <= found.value_m) & (
                found.value_m <= found.values.quantile(0.5 + INTERVAL / 2)
            )
            sums += torch.tensor(
                [
                    *terms.tolist(),
                    counts[self.token_term],
                    counts["value"],
                    float(is_top_n.sum()),
                    float((is_top_n & is_number_n).sum()),
                    float(inside_m.sum()),
                    float(found.values.negative_log_density(found.value_m).sum()),
                ],
                dtype=torch.float64,
            )
        model.train()
        tokens, values, count, numbers, top, right, inside, density = self.ranks.sum(sums.tolist())
        token_loss = tokens / max(count, 1.0)
        metrics = {"loss": token_loss + values / max(numbers, 1.0)}
        if self.token_term == "loss":
            metrics["perplexity"] = perplexity_of(token_loss)
        if not numbers:
            return metrics
        shares = {"number_recall": right / numbers, "number_precision": right / top if top else 0.0}
        return {**metrics, "value_loss": density / numbers, **shares, "interval_90": inside / numbers}

    def _counted(self, batch: Batch) -> Batch:
        numbers = float((batch.targets == self.settings.token_id).sum())
        return replace(batch, counts={self.token_term: batch.counts["loss"], "value": numbers})
