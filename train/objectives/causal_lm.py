"""Next-token prediction: on corpora all tokens are trained, on instruction data only the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from eval.metrics.exact_match import exact_match
from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.models.generate import continue_prompts
from train.objectives.next_token import NextToken
from train.objectives.number_token_loss import NumberTokenLoss
from train.protocols import Batch, Ranks, Sample, Tuning
from zerotune.models import loss_head


class CausalLM(NextToken):
    """Supervised fine-tuning and continued pre-training of a causal language model."""

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(AutoModelForCausalLM, config, tuning, ranks)
        self.weight: float = config.settings.number_token_weight
        self.number_token_loss = NumberTokenLoss(self.tokenizer) if self.weight else None
        self.terms = ("loss", "number_token") if self.weight else ("loss",)
        self.read_data()

    def load_model(self) -> nn.Module:
        """As of `NextToken`; its output layer computes the loss."""
        model = super().load_model()
        loss_head.install(model)
        return model

    def counted(self, batch: Batch) -> Batch:
        """With the digits of the number token loss."""
        if self.number_token_loss is None:
            return batch
        digits = float(self.number_token_loss.is_meant(batch.targets).sum())
        return replace(batch, counts={**batch.counts, "number_token": digits})

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum of -log p over the trained tokens; of the weighted number token loss over digits."""
        if self.number_token_loss is None:
            return {"loss": loss_head.token_loss(model, batch.inputs, batch.targets)}
        tokens, digits = loss_head.token_losses(model, batch.inputs, batch.targets, self.number_token_loss)
        return {"loss": tokens, "number_token": self.weight * digits}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Loss and perplexity, weighted by tokens; exact match of generated answers if validation.exact_match_rows."""
        rows = self.data.corpus.validation
        if rows is None:
            return {}
        model.eval()
        total, count = 0.0, 0.0
        for _, batch in self.data.held_out_batches(rows, self.config.validation.max_rows):
            total += float(self.loss(model, batch)["loss"])
            count += batch.counts["loss"]
        model.train()
        total, count = self.ranks.sum([total, count])
        loss = total / max(count, 1.0)
        metrics = {"loss": loss, "perplexity": perplexity_of(loss)}
        prompts = self.prompts(rows, self.config.validation.exact_match_rows)
        if prompts:
            answers = self._answers(model, prompts)
            right = sum(exact_match(text, prompts[i][1] or "") for i, text in answers.items())
            right, count = self.ranks.sum([right, len(answers)])
            metrics["exact_match"] = right / count
        return metrics

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """Answers to the first held-out prompts."""
        rows = self.data.corpus.validation
        if rows is None:
            return []
        prompts = self.prompts(rows, self.config.validation.samples, corpora=True)
        answers = self._answers(model, prompts, share=False) if prompts else {}
        return [Sample(self.tokenizer.decode(ids), answers[i], gold) for i, (ids, gold) in enumerate(prompts)]

    def _answers(
        self, model: nn.Module, prompts: Sequence[tuple[list[int], str | None]], share: bool = True
    ) -> dict[int, str]:
        ids, limit = [prompt for prompt, _ in prompts], self.config.validation.max_new_tokens
        return continue_prompts(model, self.tokenizer, ids, limit, self.ranks, share=share)
