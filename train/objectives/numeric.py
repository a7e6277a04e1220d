"""Next-token prediction in which numbers are values: each is one token, whose value is read and predicted.

Shape suffixes: b rows, t positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.config_numeric import NumericConfig
from train.data.prepare import Corpus
from train.models.changed_weights import changeable
from train.models.load import seeded
from train.objectives.continue_with_numbers import continue_with_numbers
from train.objectives.held_out_numbers import HeldOutNumbers
from train.objectives.next_token import NextToken
from train.protocols import Batch, Ranks, Sample, Tuning
from zerotune.common.errors import UserError
from zerotune.inference.reasoning import without_partial_character
from zerotune.models import number_rows, numeric

DIGITS = "0123456789"
LEVELS = ("level_50", "level_90")


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
        if isinstance(self.data.corpus, Corpus) and len(values := self.data.corpus.train.learned_values()):
            mean, median = float((values / len(values)).sum()), float(np.median(values))
            self.settings = replace(self.settings, training_mean=mean, training_median=median)
        # Only the first is a mean of -log p, with a perplexity.
        self.token_term = "loss" if settings.token_loss == "softmax" else "one_vs_rest"
        self.terms = (self.token_term, "value")
        self.frozen_rows: Tensor | None = None
        self.levels = (0.5, 0.9)

    def load_model(self) -> nn.Module:
        """As of `NextToken`, with the rows of `<NUM>`."""
        model: Any = super().load_model()
        if self.config.model.init == "pretrained" and numeric.settings_of(model.config) is None:
            self._start_rows(model)
        ready: nn.Module = model
        return ready

    def _start_rows(self, model: Any) -> None:
        matrices, token = number_rows.matrices(model), self.settings.token_id
        digits = self._digits()
        with changeable(matrices):
            rows_2d = torch.stack([number_rows.new_row(weight_vd, digits) for weight_vd in matrices])
            number_rows.set_rows(model, token, rows_2d)
        if not self.config.tuning.spec.trains_base:
            self.frozen_rows = rows_2d
            if getattr(model, "resized_from_tokens", None) == token:  # no other row is new
                model.resized_from_tokens = None

    def _digits(self) -> list[int]:
        """The tokens of single digits."""
        found = {d: self.tokenizer(d, add_special_tokens=False).input_ids for d in DIGITS}
        tokens = [token for d, ids in found.items() for token in ids if self.tokenizer.decode([token]).strip() == d]
        if not tokens:
            raise UserError("objective: numeric starts from the tokens of single digits, and the tokenizer has none")
        return tokens

    def add_modules(self, model: nn.Module) -> nn.Module:
        """Adds the numeric embedding, abduction and action."""
        with seeded(self.config.run.seed):
            numeric.add(model, self.settings, self.frozen_rows)
        self.tuned = model
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

        Calibrates the intervals of a model without copies.
        """
        rows = self.data.corpus.validation
        if rows is None:
            return {}
        model.eval()
        sums, numbers = torch.zeros(4, dtype=torch.float64), HeldOutNumbers()
        for _, batch in self.data.held_out_batches(rows, self.config.validation.max_rows):
            counts = self.counted(batch).counts
            terms = torch.stack([*self.loss(model, batch).values()]).tolist()
            sums += torch.tensor([*terms, counts[self.token_term], counts["value"]], dtype=torch.float64)
            numbers.add(numeric.predictions(model, batch.inputs, batch.targets))
        model.train()
        tokens, values, count, of_values = self.ranks.sum(sums.tolist())
        numbers = numbers.summed(self.ranks)
        if not self.settings.copy:  # copies are narrow: levels that hold most of them would hold little else
            self.levels = numbers.level(0.5), numbers.level(0.9)
            numeric.set_levels(model, *self.levels)
        token_loss = tokens / max(count, 1.0)
        metrics = {"loss": token_loss + values / max(of_values, 1.0)}
        if self.token_term == "loss":
            metrics["perplexity"] = perplexity_of(token_loss)
        return {**metrics, **numbers.metrics}

    def state(self) -> Mapping[str, float]:
        """The levels of the intervals."""
        return dict(zip(LEVELS, self.levels, strict=True))

    def resume(self, state: Mapping[str, float]) -> None:
        self.levels = state[LEVELS[0]], state[LEVELS[1]]
        numeric.set_levels(self.tuned, *self.levels)
