"""Semantic similarity of answers and references: cosine of the mean-pooled embeddings of a sentence encoder.

A task's `score` stays a pure function; `with_semantic_scores` returns a new task for this evaluation.

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
from zerotune.common.metric_format import CORRELATION
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.requests import Answer
from zerotune.models.dequantize import require_plain_numbers

MATCH_THRESHOLD = 0.7  # an answer above it counts as correct, as in the published evaluation
NAME = "encoder"
Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class SemanticScores:
    """Semantic metrics of a task. values: computes them from a scored sample and the similarity function."""

    metrics: tuple[SampleMetric, ...]
    values: Callable[[Sample, Similarity], Mapping[str, float]]


def _answer_values(sample: Sample, similarity: Similarity) -> Mapping[str, float]:
    value = similarity(sample.shown["answer"], sample.shown["reference"])
    return {"semantic_match": float(value > MATCH_THRESHOLD), "semantic_similarity": value}


def _dialogue_values(sample: Sample, similarity: Similarity) -> Mapping[str, float]:
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
        _answer_values,
    ),
    "dialogue": SemanticScores(
        (
            SampleMetric("semantic_turn_similarity", higher_is_better=True, scale=CORRELATION),
            SampleMetric("semantic_consistency", higher_is_better=True),
        ),
        _dialogue_values,
    ),
}


class Encoder:
    """A sentence encoder from a local folder (Hugging Face layout, safetensors), in fp32.

    Raises UserError if the folder contains none.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        checkpoint = open_checkpoint(folder, NAME)
        if not checkpoint.tokenizer.is_fast:
            raise UserError(f"--encoder {folder}: needs a fast tokenizer (tokenizer.json)")
        if checkpoint.quantized:
            raise UserError(
                f"--encoder {folder}: its weights are quantised ({checkpoint.quantized}); use one in 16 or 32 bit"
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
                f"--encoder {folder}: {checkpoint.config.model_type} is a causal language model, whose states "
                "represent a text's meaning poorly; use a sentence encoder"
            )
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # the pooler is not used here
        if missing:
            raise UserError(f"--encoder {folder}: {len(missing)} weights are missing, for example {missing[0]}")
        self._model, self._tokenizer = model.to(device).eval(), checkpoint.tokenizer
        # RoBERTa's positions start at 2; for the others, two tokens less do no harm, since windows are pooled.
        self._size = min(self._tokenizer.model_max_length, (checkpoint.context_tokens or 514) - 2)
        self._embeddings: dict[str, Tensor] = {}

    def similarity(self, one: str, other: str) -> float:
        """Cosine similarity in [-1, 1]; 0 if either text is blank."""
        if not one.strip() or not other.strip():
            return 0.0
        cosine = float(torch.dot(self._embedding(one), self._embedding(other)))
        return min(1.0, max(-1.0, cosine))  # rounding may exceed the limits

    def _embedding(self, text: str) -> Tensor:
        if text not in self._embeddings:
            self._embeddings[text] = self._embed(text)
        return self._embeddings[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> Tensor:
        """The normalised mean over all tokens. A text longer than the encoder's context is split into windows."""
        windows = self._tokenizer(
            text, truncation=True, max_length=self._size, return_overflowing_tokens=True, return_attention_mask=True
        )
        total_d, count = torch.zeros((), dtype=torch.float64), 0
        for ids, mask in zip(windows["input_ids"], windows["attention_mask"], strict=True):
            inputs = {"input_ids": ids, "attention_mask": mask}
            tensors = {name: torch.tensor([value], device=self._model.device) for name, value in inputs.items()}
            hidden_td = self._model(**tensors)[0][0]
            total_d, count = total_d + hidden_td.sum(0).double().cpu(), count + len(ids)
        return torch.nn.functional.normalize(total_d / count, dim=0)


def describe(folder: str) -> ModelInfo:
    """Identify the encoder; semantic scores are comparable only if its digests are equal."""
    checkpoint = open_checkpoint(folder, NAME)
    return ModelInfo(NAME, folder, "fp32", checkpoint.context_tokens, checkpoint.digests())


def with_semantic_scores(task: Task[Any], similarity: Similarity) -> Task[Any]:
    """Add the metrics of `SEMANTIC_SCORES` to a task."""
    meaning = SEMANTIC_SCORES[task.name]

    def score(item: Any, answers: Sequence[Answer]) -> Sample:
        sample = task.score(item, answers)
        return dataclasses.replace(sample, values={**sample.values, **meaning.values(sample, similarity)})

    return dataclasses.replace(task, score=score, metrics=(*task.metrics, *meaning.metrics))


def add_semantic_scores(tasks: Sequence[Task[Any]], folder: str | None, device: torch.device) -> list[Task[Any]]:
    """Add semantic metrics to those tasks that have any, if `folder` names an encoder.

    Raises UserError if none of the tasks has any.
    """
    if folder is None:
        return list(tasks)
    if not any(task.name in SEMANTIC_SCORES for task in tasks):
        raise UserError(f"--encoder {folder}: it applies only to {' and '.join(SEMANTIC_SCORES)}; --tasks has neither")
    similarity = Encoder(folder, device).similarity
    return [with_semantic_scores(task, similarity) if task.name in SEMANTIC_SCORES else task for task in tasks]
