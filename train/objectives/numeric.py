"""Next-token prediction in which numbers are values: each is one token, whose value is read and predicted.

Shape suffixes: b rows, t positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.config_numeric import NumericConfig
from train.models.load import seeded
from train.objectives.next_token import NextToken
from train.protocols import Batch, Ranks, Tuning
from zerotune.models import numeric

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
        self.read_data()
        # Only the first is a mean of -log p, with a perplexity.
        self.token_term = "loss" if settings.token_loss == "softmax" else "one_vs_rest"
        self.terms = (self.token_term, "value")

    def load_model(self) -> nn.Module:
        """As of `NextToken`, with a row for `<NUM>` that every tuning trains."""
        model = super().load_model()
        numeric.train_rows(model)
        return model

    def add_modules(self, model: nn.Module) -> nn.Module:
        """Adds the numeric embedding, abduction and action."""
        with seeded(self.config.run.seed):
            numeric.add(model, self.settings)
        return model

    def counted(self, batch: Batch) -> Batch:
        """With the numbers."""
        numbers = float((batch.targets == self.settings.token_id).sum())
        return replace(batch, counts={self.token_term: batch.counts["loss"], "value": numbers})

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
            counts = self.counted(batch).counts
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
