"""Whether two answers mean the same, by a sentence encoder: cosine of their mean-pooled embeddings.

A task's `score` stays a pure function: `with_semantic_scores` makes another task of it, for this evaluation alone.

Shape suffixes: t positions, d width of the hidden states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel

from eval.metrics.consistency import consistency
from eval.protocols import Sample, SampleMetric, Task
from eval.result import ModelInfo
from eval.tasks import dialogue
from zerotune.common.errors import UserError
from zerotune.common.scale import CORRELATION
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.requests import Answer
from zerotune.models.dequantize import require_plain_numbers

SAME_MEANING = 0.7  # above it an answer counts as right, as in the published evaluation
NAME = "encoder"
Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class SemanticScores:
    """What is said of a task's sample by meaning. values: from the sample, scored already, and the similarity."""

    metrics: tuple[SampleMetric, ...]
    values: Callable[[Sample, Similarity], Mapping[str, float]]


def _of_answer(sample: Sample, similarity: Similarity) -> Mapping[str, float]:
    alike = similarity(sample.shown["answer"], sample.shown["reference"])
    return {"semantic_match": float(alike > SAME_MEANING), "semantic_similarity": alike}


def _of_dialogue(sample: Sample, similarity: Similarity) -> Mapping[str, float]:
    answers, references = dialogue.texts_of(sample)
    return {
        "semantic_turn_similarity": mean(map(similarity, answers, references)),
        "semantic_consistency": consistency(answers, references, similarity),
    }


SEMANTIC_SCORES: Mapping[str, SemanticScores] = {
    "qa": SemanticScores(
        (
            SampleMetric("semantic_match", higher_is_better=True, is_share=True),
            SampleMetric("semantic_similarity", higher_is_better=True, scale=CORRELATION),
        ),
        _of_answer,
    ),
    "dialogue": SemanticScores(
        (
            SampleMetric("semantic_turn_similarity", higher_is_better=True, scale=CORRELATION),
            SampleMetric("semantic_consistency", higher_is_better=True),
        ),
        _of_dialogue,
    ),
}


class Encoder:
    """A sentence encoder in a local folder (Hugging Face layout, safetensors), in fp32.

    Raises UserError where the folder holds none.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        checkpoint = open_checkpoint(folder, NAME)
        if not checkpoint.tokenizer.is_fast:
            raise UserError(f"--encoder {folder}: it needs a fast tokenizer (tokenizer.json)")
        if checkpoint.quantized:
            raise UserError(
                f"--encoder {folder}: its weights are quantised ({checkpoint.quantized}); take one in 16 or 32 bit"
            )
        try:
            require_plain_numbers(checkpoint.folder)
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"--encoder {folder}: the weights cannot be loaded: {error}") from error
        if any(getattr(module, "is_causal", False) for module in model.modules()):
            raise UserError(
                f"--encoder {folder}: {checkpoint.config.model_type} is a language model, whose states know only what "
                "came before and say little of a text's meaning; take a sentence encoder"
            )
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # the pooler is not used here
        if missing:
            raise UserError(f"--encoder {folder}: {len(missing)} weights are missing, for example {missing[0]}")
        self._model, self._tokenizer = model.to(device).eval(), checkpoint.tokenizer
        # RoBERTa's positions begin at 2; two tokens less are harmless for all others, as windows are pooled together
        self._size = min(self._tokenizer.model_max_length, (checkpoint.context_tokens or 514) - 2)
        self._known: dict[str, Tensor] = {}

    def similarity(self, one: str, other: str) -> float:
        """Cosine, in [-1, 1]; 0 where either text is blank."""
        if not one.strip() or not other.strip():
            return 0.0
        cosine = float(torch.dot(self._embedding(one), self._embedding(other)))
        return min(1.0, max(-1.0, cosine))  # rounding goes beyond

    def _embedding(self, text: str) -> Tensor:
        if text not in self._known:
            self._known[text] = self._embed(text)
        return self._known[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> Tensor:
        """The mean over all tokens, of length 1. A text longer than the encoder's context is read in windows."""
        windows = self._tokenizer(
            text, truncation=True, max_length=self._size, return_overflowing_tokens=True, return_attention_mask=True
        )
        total_d, count = torch.zeros((), dtype=torch.float64), 0
        for ids, mask in zip(windows["input_ids"], windows["attention_mask"], strict=True):
            given = {"input_ids": ids, "attention_mask": mask}
            hidden_td = self._model(**{k: torch.tensor([v], device=self._model.device) for k, v in given.items()})[0][0]
            total_d, count = total_d + hidden_td.sum(0).double().cpu(), count + len(ids)
        return torch.nn.functional.normalize(total_d / count, dim=0)


def describe(folder: str) -> ModelInfo:
    """Which encoder it is: numbers of meaning compare only where its digests are the same."""
    checkpoint = open_checkpoint(folder, NAME)
    return ModelInfo(NAME, folder, "fp32", checkpoint.context_tokens, checkpoint.digests())


def with_semantic_scores(task: Task[Any], similarity: Similarity) -> Task[Any]:
    """The task with what `SEMANTIC_SCORES` has for it beside its own numbers."""
    meaning = SEMANTIC_SCORES[task.name]

    def score(item: Any, answers: Sequence[Answer]) -> Sample:
        sample = task.score(item, answers)
        return dataclasses.replace(sample, values={**sample.values, **meaning.values(sample, similarity)})

    return dataclasses.replace(task, score=score, metrics=(*task.metrics, *meaning.metrics))


def add_semantic_scores(tasks: Sequence[Task[Any]], folder: str | None, device: torch.device) -> list[Task[Any]]:
    """The tasks, those of `SEMANTIC_SCORES` scored by meaning too where `folder` names an encoder.

    Raises UserError where none of the tasks could be.
    """
    if folder is None:
        return list(tasks)
    if not any(task.name in SEMANTIC_SCORES for task in tasks):
        raise UserError(
            f"--encoder {folder}: it scores the answers of {' and '.join(SEMANTIC_SCORES)}; --tasks has neither"
        )
    similarity = Encoder(folder, device).similarity
    return [with_semantic_scores(task, similarity) if task.name in SEMANTIC_SCORES else task for task in tasks]
