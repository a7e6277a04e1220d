"""Next-token prediction: corpora (every token is learned) and instruction data (only the answers are)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from eval.metrics.exact_match import exact_match
from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.data.batch import IGNORED, Rows, Shape, collate, micro_batches
from train.data.encode import Corpus, StreamingCorpus, prepare, stream
from train.data.steps import FixedSteps, Steps
from train.data.streamed import StreamedSteps
from train.errors import UserError
from train.models import attention, loss_head
from train.models.digest import model_digest
from train.models.generate import continue_prompts
from train.models.load import fit_vocabulary, load_causal_lm, load_tokenizer, skeleton
from train.protocols import Batch, Plan, Ranks, Sample, Tuning

CORPUS_PROMPT_TOKENS = 16  # a corpus asks no questions: its samples continue the first tokens of a held-out text
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FROZEN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class CausalLM:
    """Supervised fine-tuning and continued pre-training of a causal language model."""

    terms: tuple[str, ...] = ("loss",)
    lower_is_better: Mapping[str, bool] = {"loss": True, "perplexity": True, "exact_match": False}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.tuning, self.ranks = config, tuning, ranks
        self.tokenizer: Any = load_tokenizer(config.model)
        data, seed = config.data, config.run.seed
        self.corpus: Corpus | StreamingCorpus
        self.source: Steps
        if data.streaming:
            self.corpus = stream(data, self.tokenizer, seed, ranks)
            self.shape = self._shape()
            self.source = StreamedSteps(self.corpus.windows, self.shape, seed, config.duration, ranks)
        else:
            self.corpus = prepare(data, self.tokenizer, seed, ranks)
            self.shape = self._shape()
            weights = [source.weight for source in data.train]
            self.source = FixedSteps(self.corpus.train, weights, self.shape, seed, config.duration, ranks)
        self.model_digest = model_digest(config.model.path, config.model.revision)

    @property
    def plan(self) -> Plan:
        """Of the data's steps."""
        return self.source.plan

    @property
    def facts(self) -> Mapping[str, Any]:
        """Data, model and chat template."""
        return {
            "data_digest": self.corpus.digest,
            "data_lines": list(self.corpus.lines),
            "rows_left_out": self.corpus.rows_left_out,
            "model": {"path": self.config.model.path, "digest": self.model_digest},
            "template_hash": self.corpus.template_hash,
        }

    def _packed(self) -> bool:
        """Whether several rows share one sequence: where asked for, or where tuning and model allow it."""
        layout = self.config.batch.layout
        if layout == "padded" or not self.tuning.can_pack:
            return False
        possible = attention.can_pack(skeleton(AutoModelForCausalLM, self.config.model))
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

    def load_model(self) -> nn.Module:
        """The pretrained (or new) model with its head ready to give the loss itself."""
        frozen = FROZEN[self.config.run.precision]
        weights = self.config.model.weights
        auto = torch.float32 if self.config.tuning.kind == "full" else frozen
        dtype = auto if weights == "auto" else DTYPES[weights]
        attention.register()
        model: Any = load_causal_lm(
            self.config.model,
            dtype=dtype,
            attention=attention.implementation(
                self.config.model.attention, self.shape.packed, self.ranks.device, frozen
            ),
            options=self.tuning.load_options(frozen),
            seed=self.config.run.seed,
        )
        fit_vocabulary(model, self.tokenizer, self.config.run.seed)
        stops = model.generation_config.eos_token_id or []
        own = {stops} if isinstance(stops, int) else set(stops)
        model.generation_config.eos_token_id = sorted(own | set(self.corpus.stop_ids))
        loss_head.install(model)
        if self.config.model.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step."""
        return self.source.walk(start_step)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sum of -log p over the learned tokens."""
        return {"loss": loss_head.token_loss(model, batch.inputs, batch.targets)}

    @property
    def held_out(self) -> Rows | None:
        """The validation rows."""
        rows: Rows | None = self.corpus.validation
        return rows

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Token-exact loss and perplexity; exact match of generated answers where asked for."""
        rows = self.held_out
        if rows is None:
            return {}
        indices = np.arange(min(len(rows), self.config.validation.max_rows or len(rows)))
        groups = micro_batches(indices, rows.lengths_n, self.shape, self.ranks.count)
        model.eval()
        total, count = 0.0, 0.0
        for group in groups[self.ranks.index :: self.ranks.count]:
            batch = collate(rows, group, self.shape, filler=0).to(self.ranks.device)
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
        rows = self.held_out
        if rows is None or not self.config.validation.samples:
            return []
        asked = self._questions(rows, self.config.validation.samples, corpora=True)
        if not asked:
            return []
        prompts = [prompt for prompt, _ in asked]
        limit = self.config.validation.max_new_tokens
        answers = continue_prompts(model, self.tokenizer, prompts, limit, self.ranks, share=False)
        return [Sample(self.tokenizer.decode(p), answers[i], reference) for i, (p, reference) in enumerate(asked)]

    def save_assets(self, folder: Path) -> None:
        """The tokenizer with the chat template in use."""
        self.tokenizer.save_pretrained(folder)

    def _answers(self, model: nn.Module, asked: Sequence[tuple[list[int], str | None]]) -> dict[int, str]:
        prompts = [prompt for prompt, _ in asked]
        return continue_prompts(model, self.tokenizer, prompts, self.config.validation.max_new_tokens, self.ranks)

    def _questions(self, rows: Rows, limit: int, corpora: bool = False) -> list[tuple[list[int], str | None]]:
        """(prompt tokens, reference answer) of the first rows: the last answer of each is asked for."""
        asked: list[tuple[list[int], str | None]] = []
        for index in range(min(limit, len(rows))):
            ids, labels = rows.tokens(index)
            learned = np.flatnonzero(labels != IGNORED)
            gaps = np.flatnonzero(np.diff(learned) > 1)
            start = int(learned[gaps[-1] + 1] if len(gaps) else learned[0])
            if start > 1:
                reference = self.tokenizer.decode(ids[start : learned[-1] + 1].tolist(), skip_special_tokens=True)
                asked.append((ids[:start].tolist(), reference))
            elif corpora:
                asked.append((ids[:CORPUS_PROMPT_TOKENS].tolist(), None))
        return asked
