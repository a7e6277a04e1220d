"""Whole evaluations made up for the tests of the report: no model, no time; what an answer may hold at its worst."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from eval.compare import compare, outcomes, with_holm_correction
from eval.contamination import Overlaps, with_contamination
from eval.metrics.perplexity import BITS_PER_BYTE
from eval.metrics.perplexity import PERPLEXITY as BY_TOKEN
from eval.protocols import Metric, Sample, SampleMetric, Table
from eval.result import Evaluation, ModelInfo, Overlap, Result, Skipped, TaskResult

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> | *x* `y` {{ 7 * 7 }}"
CHINESE = "北京是中国的首都；模型的回答在这里，很长很长。"
ACCURACY = SampleMetric("accuracy", higher_is_better=True, is_share=True)
SIMILARITY = SampleMetric("similarity", higher_is_better=True)
PERPLEXITY = (BY_TOKEN, BITS_PER_BYTE)


def evaluation(models: Sequence[str] = ("base", "merged"), rows: int = 120, parts: int = 30) -> Evaluation:
    """quiz has subjects, a table and rows in the training data; texts has perplexity."""
    quiz = {model: [_answer(k, place, parts) for k in range(rows)] for place, model in enumerate(models)}
    texts = {model: [_text(k, place) for k in range(40)] for place, model in enumerate(models)}
    tables = [Table("Longest answers", ("answer", "words"), [(CHINESE, 12.0), (HOSTILE, 3.0)])]
    first = _task("quiz", (ACCURACY, SIMILARITY), quiz)
    first = dataclasses.replace(first, tables=dict.fromkeys(models, tables))
    found = [Overlap(f"quiz.jsonl:{k + 1}", "row" if k % 2 else "passage", f"train.jsonl:{9 * k}") for k in range(20)]
    overlaps = Overlaps({"quiz": found}, {"train.jsonl": 5000}, ["lost.jsonl: no such file, folder or glob"])
    tasks = [
        with_contamination(first, (ACCURACY, SIMILARITY), quiz, overlaps),
        dataclasses.replace(
            _task("texts", PERPLEXITY, texts), skipped=[Skipped("texts.jsonl:77", "it needs 900 tokens")]
        ),
    ]
    result = Result(
        created="2026-01-31T12:00:00+00:00",
        settings={"device": "cpu", "ranks": 1},
        versions={"python": "3.11", "torch": "2.13"},
        models=[ModelInfo(name, f"/x/{name}", "bf16", 2048, {"weights": "ab" * 32}) for name in models],
        tasks=with_holm_correction(tasks),
    )
    won = {"quiz": outcomes((ACCURACY,), quiz), "texts": outcomes(PERPLEXITY, texts)}
    return Evaluation(result, {"quiz": quiz, "texts": texts}, won)


def _task(name: str, metrics: Sequence[Metric], samples: dict[str, list[Sample]]) -> TaskResult:
    return TaskResult(
        name=name,
        version=1,
        data={f"{name}.jsonl": "cd" * 32},
        samples=len(next(iter(samples.values()))),
        skipped=[],
        metrics=compare(metrics, samples),
        seconds=dict.fromkeys(samples, 12.5),
    )


def _answer(k: int, place: int, parts: int) -> Sample:
    draw = np.random.default_rng([k, place])
    right = float(draw.random() < 0.3 + 0.25 * min(place, 1))
    shown = {
        "prompt": f"Question {k}: {HOSTILE if k == 3 else CHINESE}",
        "answer": HOSTILE if k % 7 == 0 else f"{CHINESE * (1 + k % 3)} {place}",
        "reference": "北京",
    }
    values = {"accuracy": right, "similarity": float(draw.beta(2, 3))}
    return Sample(f"quiz.jsonl:{k + 1}", values, shown, {"subject": f"subject_{k % parts:02}"})


def _text(k: int, place: int) -> Sample:
    draw = np.random.default_rng([k, place, 5])
    tokens = float(np.random.default_rng([k, 5]).integers(20, 400))  # one tokenizer for all models
    values = {"nll": tokens * (3.2 - 0.6 * min(place, 1) + float(draw.normal(0, 0.2))), "tokens": tokens}
    return Sample(f"texts.jsonl:{k + 1}", values | {"bytes": 4 * tokens}, {"text": CHINESE * 30})
