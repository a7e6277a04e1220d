"""Prompt tuning (arXiv:2104.08691): trained vectors before the text; all weights of the model are frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.config import ModelConfig, TuningConfig
from train.models.load import load_tokenizer, seeded
from train.tuning.describe import write_description
from zerotune.common.errors import UserError
from zerotune.models.folder import resolve


class Prompt:
    """`virtual_tokens` vectors are trained. Rows cannot be packed: those of a pack would have to share the vectors."""

    def __init__(
        self, config: TuningConfig, seed: int = 0, *, model: ModelConfig | None = None, task: str = "CAUSAL_LM"
    ) -> None:
        self.config, self.seed, self.model, self.task = config.prompt, seed, model, task

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with its prompt before every sequence. Initial values come from the seed, or from init_text."""
        from peft import PromptTuningConfig, get_peft_model  # takes seconds: only if needed

        added = getattr(model, "resized_from_tokens", None)
        if added is not None:
            raise UserError(
                f"tuning.kind: the tokenizer has more tokens than the model's {added}; prompt tuning would not train "
                "their embeddings. Use the model's own tokenizer, or tuning.kind lora or full"
            )
        options: dict[str, Any] = {"prompt_tuning_init": "SAMPLE_VOCAB"}
        if (text := self.config.init_text) is not None:
            options = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, **self._tokenizer()}
        description = PromptTuningConfig(
            task_type=self.task, num_virtual_tokens=self.config.virtual_tokens, inference_mode=False, **options
        )
        model.requires_grad_(False)
        with seeded(self.seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT's own call
            try:
                tuned: nn.Module = get_peft_model(model, description)
            except ValueError as error:  # PEFT does not find the sizes of a model without attention
                kind = type(model).__name__
                raise UserError(
                    f"tuning.kind: prompt tuning is not possible with a {kind} ({error}); use lora or full"
                ) from error
        return tuned

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """Write the model's config."""
        write_description(model, folder)

    def _tokenizer(self) -> dict[str, Any]:
        """The tokenizer's path for PEFT; loading it here first gives our own error messages."""
        assert self.model is not None
        if not load_tokenizer(self.model)(self.config.init_text or "")["input_ids"]:
            raise UserError("tuning.prompt.init_text: the text has no tokens")
        revision = None if self.model.tokenizer else self.model.revision
        return {"tokenizer_name_or_path": str(resolve(self.model.tokenizer or self.model.path, revision))}
