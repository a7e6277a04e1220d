"""Next-token prediction: corpora (every token is learned) and instruction data (only the answers are)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from eval.metrics.exact_match import exact_match
from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.data.prepare import Encoded, LabelSpec
from train.models.generate import continue_prompts
from train.objectives.base_model import BaseModel
from train.objectives.prompt_and_answer import answer_at
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Sample, Tuning
from zerotune.inference.checkpoint import as_tuple
from zerotune.models import attention, loss_head

CORPUS_PROMPT_TOKENS = 16  # a corpus asks no questions: its samples continue the first tokens of a held-out text


class CausalLM(Objective):
    """Supervised fine-tuning and continued pre-training of a causal language model."""

    peft_task_type = "CAUSAL_LM"
    best_metric = "loss"
    lower_is_better: Mapping[str, bool] = {"loss": True, "perplexity": True, "exact_match": False}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.base = BaseModel(AutoModelForCausalLM, config, tuning, ranks)
        self.tokenizer, label_spec = self.base.tokenizer, LabelSpec(labels=tuple(config.head.labels))
        self.data = RowData(config, self.base, ranks, label_spec, attention.can_pack(self.base.empty))
        self.schedule = self.data.steps()

    @property
    def plan(self) -> Plan:
        """That of the steps over the rows."""
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Data and model."""
        return {**self.data.metadata, "model": self.base.metadata, "digests": self.base.digests}

    def load_model(self) -> nn.Module:
        """The pretrained (or new) model with its head ready to give the loss itself."""
        model = self.base.load(self.data.shape.packed)
        own = as_tuple(model.generation_config.eos_token_id)
        model.generation_config.eos_token_id = sorted({*own, *self.data.corpus.stop_ids})
        loss_head.install(model)
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step."""
        return self.schedule.walk(start_step)

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out one."""
        return self.data.first_row

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum of -log p over the learned tokens."""
        return {"loss": loss_head.token_loss(model, batch.inputs, batch.targets)}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Token-exact loss and perplexity; exact match of generated answers where asked for."""
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
        asked = self._questions(rows, self.config.validation.exact_match_rows)
        if asked:
            answers = self._answers(model, asked)
            right = sum(exact_match(text, asked[i][1] or "") for i, text in answers.items())
            right, count = self.ranks.sum([right, len(answers)])
            metrics["exact_match"] = right / count
        return metrics

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """The first held-out prompts, continued."""
        rows = self.data.corpus.validation
        if rows is None or not self.config.validation.samples:
            return []
        asked = self._questions(rows, self.config.validation.samples, corpora=True)
        if not asked:
            return []
        prompts = [prompt for prompt, _ in asked]
        limit = self.config.validation.max_new_tokens
        answers = continue_prompts(model, self.tokenizer, prompts, limit, self.ranks, share=False)
        return [Sample(self.tokenizer.decode(p), answers[i], reference) for i, (p, reference) in enumerate(asked)]

    def _answers(self, model: nn.Module, asked: Sequence[tuple[list[int], str | None]]) -> dict[int, str]:
        prompts = [prompt for prompt, _ in asked]
        return continue_prompts(model, self.tokenizer, prompts, self.config.validation.max_new_tokens, self.ranks)

    def _questions(self, rows: Encoded, limit: int, corpora: bool = False) -> list[tuple[list[int], str | None]]:
        """(prompt tokens, reference answer) of the first rows: the last answer of each is asked for."""
        asked: list[tuple[list[int], str | None]] = []
        for index in range(min(limit, len(rows))):
            ids, labels = rows.tokens(index)
            start, end = answer_at(labels)
            if start > 1:
                reference = self.tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=True)
                asked.append((ids[:start].tolist(), reference))
            elif corpora:
                asked.append((ids[:CORPUS_PROMPT_TOKENS].tolist(), None))
        return asked
