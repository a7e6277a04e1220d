"""An objective: next-token prediction by the focal loss (arXiv:1708.02002), which looks away from what is easy.

Shape suffixes: n learned tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from train.config import Config
from train.data.prepare import LabelSpec
from train.objectives.base_model import BaseModel
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Tuning
from zerotune.models import attention


class FocalLM(Objective):
    """Sum of -(1 - p)^gamma log p over the learned tokens."""

    peft_task_type = "CAUSAL_LM"

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.gamma = config.settings.gamma
        self.ranks, self.base = ranks, BaseModel(AutoModelForCausalLM, config, tuning, ranks)
        self.tokenizer, can_pack = self.base.tokenizer, attention.can_pack(self.base.empty)
        self.data = RowData(config, self.base, ranks, LabelSpec(config.spec.formats), can_pack)
        self.schedule = self.data.steps()

    @property
    def plan(self) -> Plan:
        """That of the steps over the rows."""
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Data and model."""
        return {**self.data.metadata, "model": self.base.metadata}

    def load_model(self) -> nn.Module:
        """The pretrained model."""
        model: nn.Module = self.base.load(self.data.shape.packed)
        return model

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step."""
        return self.schedule.walk(start_step)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Summed over the learned tokens."""
        is_learned = batch.targets != -100
        logits_nv = model(**batch.inputs).logits[is_learned].float()
        log_p_n = -F.cross_entropy(logits_nv, batch.targets[is_learned], reduction="none")
        return {"loss": -((1 - log_p_n.exp()) ** self.gamma * log_p_n).sum()}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """The loss of the held-out rows."""
        rows = self.data.corpus.validation
        if rows is None:
            return {}
        model.eval()
        batches = [batch for _, batch in self.data.held_out_batches(rows, 0)]
        own = [sum(float(self.loss(model, b)["loss"]) for b in batches), sum(b.counts["loss"] for b in batches)]
        model.train()
        total, count = self.ranks.sum(own)
        return {"loss": total / count}
