"""Next-token prediction in which numbers are values: each is one token, whose value is read and predicted.

Shape suffixes: b rows, t positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.config_numeric import NumericConfig
from train.engine.gather_weights import changeable
from train.models.load import seeded
from train.objectives.continue_with_numbers import continue_with_numbers
from train.objectives.next_token import NextToken
from train.protocols import Batch, Ranks, Sample, Tuning
from zerotune.inference.reasoning import without_partial_character
from zerotune.models import number_rows, numeric

DIGITS = "0123456789"
CLOSE = 0.01
INTERVAL = 0.9  # share of values that the central interval in the metrics should hold


class NumericLM(NextToken):
    """Fine-tuning and pre-training with a numeric embedding, and Cauchy distributions of values."""

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(numeric.AutoNumericLM, config, tuning, ranks)
        self.numeric: NumericConfig = config.settings
        numeric.require_plain_logits(self.base.empty)
        token = numeric.add_token(self.tokenizer)
        settings = self.numeric
        self.settings = numeric.Settings(
            token, settings.value_space, settings.token_loss, settings.threshold, settings.copy
        )
        self.read_data(numbers=True)
        # Only the first is a mean of -log p, with a perplexity.
        self.token_term = "loss" if settings.token_loss == "softmax" else "one_vs_rest"
        self.terms = (self.token_term, "value")
        self.frozen_rows: Tensor | None = None

    def load_model(self) -> nn.Module:
        """As of `NextToken`, with the rows of `<NUM>`."""
        model: Any = super().load_model()
        if self.config.model.init == "pretrained" and numeric.settings_of(model.config) is None:
            self._start_rows(model)
        ready: nn.Module = model
        return ready

    def _start_rows(self, model: Any) -> None:
        matrices, token = number_rows.matrices(model), self.settings.token_id
        digits = self.tokenizer(DIGITS, add_special_tokens=False).input_ids
        with changeable(matrices):
            rows_2d = torch.stack([number_rows.new_row(weight_vd, digits) for weight_vd in matrices])
            number_rows.set_rows(model, token, rows_2d)
        if not self.config.tuning.spec.trains_base:
            self.frozen_rows = rows_2d
            if getattr(model, "resized_from_tokens", None) == token:  # no other row is new
                model.resized_from_tokens = None

    def add_modules(self, model: nn.Module) -> nn.Module:
        """Adds the numeric embedding, abduction and action."""
        with seeded(self.config.run.seed):
            numeric.add(model, self.settings, self.frozen_rows)
        return model

    def counted(self, batch: Batch) -> Batch:
        """With the numbers."""
        numbers = float((batch.targets == self.settings.token_id).sum())
        return replace(batch, counts={self.token_term: batch.counts["loss"], "value": numbers})

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums of the token loss over the trained tokens, and of the weighted values over the trained numbers."""
        tokens, values = numeric.losses(model, batch.inputs, batch.targets, self.numeric.gate)
        return {self.token_term: tokens, "value": self.numeric.weight * values}

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """Answers to the first held-out prompts."""
        rows = self.data.corpus.validation
        if rows is None:
            return []
        prompts = self.prompts(rows, self.config.validation.samples, corpora=True)
        if not prompts:
            return []
        model.eval()
        answers = continue_with_numbers(
            model,
            [ids for ids, _ in prompts],
            self.settings.token_id,
            self.stop_ids,
            self.config.validation.max_new_tokens,
            self.data.shape,
            self.ranks,
        )
        model.train()
        return [
            Sample(self.text(ids), without_partial_character(self.text(answer, skip_special_tokens=True)), gold)
            for (ids, gold), answer in zip(prompts, answers, strict=True)
        ]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Means over held-out tokens and numbers.

        number_recall, number_precision: of `<NUM>` as the most probable token. interval_90: share of the values inside
        their central 90 % interval. within_1_percent: share of the medians that differ so little from the value.
        value_loss: mean -log density, without weight and gate.
        """
        rows = self.data.corpus.validation
        if rows is None:
            return {}
        model.eval()
        sums = torch.zeros(9, dtype=torch.float64)
        for _, batch in self.data.held_out_batches(rows, self.config.validation.max_rows):
            counts = self.counted(batch).counts
            terms = torch.stack([*self.loss(model, batch).values()])
            found = numeric.predictions(model, batch.inputs, batch.targets)
            is_top_n, is_number_n = found.rank_n == 1, found.is_number_n
            low_m, median_m, high_m = found.values.quantiles((0.5 - INTERVAL / 2, 0.5, 0.5 + INTERVAL / 2))
            is_close_m = (median_m - found.value_m).abs() <= CLOSE * found.value_m.abs()
            inside_m = (low_m <= found.value_m) & (found.value_m <= high_m)
            sums += torch.tensor(
                [
                    *terms.tolist(),
                    counts[self.token_term],
                    counts["value"],
                    float(is_top_n.sum()),
                    float((is_top_n & is_number_n).sum()),
                    float(inside_m.sum()),
                    float(is_close_m.sum()),
                    float(found.values.negative_log_density(found.value_m).sum()),
                ],
                dtype=torch.float64,
            )
        model.train()
        tokens, values, count, numbers, top, right, inside, close, density = self.ranks.sum(sums.tolist())
        token_loss = tokens / max(count, 1.0)
        metrics = {"loss": token_loss + values / max(numbers, 1.0)}
        if self.token_term == "loss":
            metrics["perplexity"] = perplexity_of(token_loss)
        if not numbers:
            return metrics
        shares = {"number_recall": right / numbers, "number_precision": right / top if top else 0.0}
        values_of = {"within_1_percent": close / numbers, "interval_90": inside / numbers}
        return {**metrics, "value_loss": density / numbers, **shares, **values_of}
