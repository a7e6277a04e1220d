"""What objectives over the next token share: rows, steps, and the model with its stop tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from train.config import Config
from train.data.prepare import Encoded, LabelSpec
from train.objectives.base_model import BaseModel
from train.objectives.prompt_and_answer import last_answer
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Tuning
from zerotune.data.number_tokens import number_id, with_spellings
from zerotune.inference.checkpoint import as_tuple
from zerotune.models import attention

CORPUS_PROMPT_TOKENS = 16  # samples of a corpus continue the first tokens of a held-out text


class NextToken(Objective):
    """A causal language model and its rows. model_class: as of `BaseModel`."""

    peft_task_type = "CAUSAL_LM"

    def __init__(self, model_class: Any, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.base = BaseModel(model_class, config, tuning, ranks)
        self.tokenizer = self.base.tokenizer

    def read_data(self) -> None:
        """Tokenise the rows."""
        label_spec = LabelSpec.of(self.config)
        self.data = RowData(self.config, self.base, self.ranks, label_spec, attention.can_pack(self.base.empty))
        self.schedule = self.data.steps()

    @property
    def plan(self) -> Plan:
        return self.schedule.plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {**self.data.metadata, "model": self.base.metadata, **self.base.digests}

    def load_model(self) -> nn.Module:
        """The pretrained or new model, which stops at what ends the answers of the rows."""
        model: Any = self.base.load(self.data.shape.packed)
        own = as_tuple(model.generation_config.eos_token_id)
        self.stop_ids = sorted({*own, *self.data.corpus.stop_ids})
        model.generation_config.eos_token_id = self.stop_ids
        ready: nn.Module = model
        return ready

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each optimizer step, with the counts of all terms."""
        for step in self.schedule.walk(start_step):
            yield [self.counted(batch) for batch in step]

    def counted(self, batch: Batch) -> Batch:
        """The micro-batch with the counts of terms beside the token loss."""
        return batch

    def prompts(self, rows: Encoded, limit: int, corpora: bool = False) -> list[tuple[list[int], str | None]]:
        """(ids, reference answer) of the first rows; numbers as values have ids of their own (`number_id`). The
        reference is the last answer of the row. corpora: also the first tokens of texts, which have none.
        """
        prompts: list[tuple[list[int], str | None]] = []
        for index in range(min(limit, len(rows))):
            tokens, labels = rows.tokens(index)
            values = rows.number_values(index)
            ids = tokens.tolist()
            if values is not None:
                ids = [number_id(v) if t == rows.number_token else t for t, v in zip(ids, values, strict=True)]
            start, end = last_answer(labels)
            if start > 1:
                prompts.append((ids[:start], self.text(ids[start:end], skip_special_tokens=True)))
            elif corpora:
                prompts.append((ids[:CORPUS_PROMPT_TOKENS], None))
        return prompts

    def text(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids, numbers as values in digits."""
        decode = partial(self.tokenizer.decode, skip_special_tokens=skip_special_tokens)
        return with_spellings(ids, self.tokenizer, decode)

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out row."""
        return self.data.first_row
