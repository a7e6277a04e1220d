"""The results of an evaluation: result.json (documented in docs/evaluation.md) and its samples."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.protocols import Sample, Table
from zerotune.common.mask_secrets import mask_all
from zerotune.models.run_facts import RunFacts

SCHEMA = "zerotune.evaluation"
SCHEMA_VERSION = 11


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint. digests: sha256 of weights, tokenizer and chat template. origin: None if no run trained it.

    template_date: the date passed to its chat template; None if the template reads no clock or was not used.
    system_prompt: the system message of conversations without one; empty if there is none.
    """

    name: str
    path: str
    precision: str
    context_tokens: int | None
    digests: Mapping[str, str]
    origin: RunFacts | None = None
    template_date: str | None = None
    system_prompt: str = ""


@dataclass(frozen=True)
class Estimate:
    """A metric of one model with its 95 % interval. reason: why there is no interval."""

    model: str
    value: float
    low: float | None
    high: float | None
    method: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """`model` minus the baseline on the same samples (for perplexities `model` / baseline), with its 95 % interval.

    won: samples where `model` is better. test, p_value: of the hypothesis "no difference"; p_holm: corrected for all
    comparisons of the evaluation. detectable: the smallest true difference (or ratio, like value) that these samples
    would detect with a power of 80 %. reason: why it was not tested.
    """

    model: str
    value: float
    low: float | None
    high: float | None
    method: str | None
    won: int
    lost: int
    tied: int
    verdict: str  # better, worse, no significant difference, not tested
    test: str | None = None
    p_value: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """The metric over one subset of the samples: `name` (agronomy) of the `group` (subject)."""

    group: str
    name: str
    samples: int
    estimates: Sequence[Estimate]


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task.

    level: sample (a mean over samples) or corpus (a function of all samples). is_share: the share of correct samples.
    scale: name of its `zerotune.common.metric_format`; on the scale "perplexity" differences are ratios.
    groups: the metric of each subset, if the task has any.
    """

    name: str
    level: str
    higher_is_better: bool
    is_share: bool
    estimates: Sequence[Estimate]
    differences: Sequence[Difference]
    groups: Sequence[GroupResult] = ()
    scale: str = "share"


@dataclass(frozen=True)
class Overlap:
    """A sample that occurs in the training data.

    how: row (equal), words (equal up to case, punctuation and spaces) or passage (a common sequence of words).
    place: file:line of the training row.
    """

    id: str
    how: str
    place: str


@dataclass(frozen=True)
class Contamination:
    """Samples that occur in the training data, and the metrics without them.

    training: compared file -> its number of rows. missing: why other training data could not be compared. found: at
    most one for each sample. clean: number of other samples; metrics: over these, empty if all or none are clean.
    """

    training: Mapping[str, int]
    missing: Sequence[str]
    found: Sequence[Overlap]
    clean: int
    metrics: Sequence[MetricResult]


@dataclass(frozen=True)
class Skipped:
    """A row that was not scored for any model."""

    id: str
    reason: str


@dataclass(frozen=True)
class Subsample:
    """The subsample that `--max_rows` selects: `rows` of `of_rows`, from `files` of `of_files`."""

    rows: int
    of_rows: int
    files: int
    of_files: int


@dataclass(frozen=True)
class TaskResult:
    """One task.

    data: file -> sha256. samples: rows scored for every model. seconds: model -> time without loading.
    tokens: model -> tokens processed: shared prefixes once, without padding. reused: model -> requests answered from
    the cache, at no cost. tables: model -> its tables for the report.
    contamination: None without training data to compare with. cut_short: model -> ids of rows whose answer, next turn,
    try or tool call exceeded the context. only_reasoning: model -> ids of rows with an answer that ended within its
    reasoning, which counts as no answer. template_problems: model -> what its chat template leaves out or writes
    wrongly -> ids of these rows. left_out: what rows have that the task does not use. fewer: None if all rows were
    evaluated.
    """

    name: str
    version: int
    data: Mapping[str, str]
    samples: int
    skipped: Sequence[Skipped]
    metrics: Sequence[MetricResult]
    seconds: Mapping[str, float]
    tokens: Mapping[str, int] = field(default_factory=dict)
    reused: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    contamination: Contamination | None = None
    cut_short: Mapping[str, Sequence[str]] = field(default_factory=dict)
    only_reasoning: Mapping[str, Sequence[str]] = field(default_factory=dict)
    template_problems: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    fewer: Subsample | None = None


@dataclass(frozen=True)
class Result:
    """Everything but the samples. The first model is the baseline. encoder: of the semantic metrics, if any.

    code: commit of the evaluator and whether its files were modified; None outside a repository.
    """

    created: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    models: Sequence[ModelInfo]
    tasks: Sequence[TaskResult]
    encoder: ModelInfo | None = None
    code: Mapping[str, Any] | None = None
    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """JSON; a number that is not finite becomes null, a secret from the environment becomes ***."""
        content = _finite(mask_all(dataclasses.asdict(self)))
        return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """samples: task -> model -> its samples, for every model the same rows in the same order.

    outcomes: task -> model (not the baseline) -> for each sample +1 won, -1 lost, 0 tied, by the task's first metric
    that can be compared.
    """

    result: Result
    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    outcomes: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)


def sample_lines(samples: Sequence[Sample]) -> str:
    """JSON Lines: id (file:line), values of the metrics, prompts and answers."""
    rows = [_finite({"id": sample.id, **sample.groups, **sample.values, **sample.shown}) for sample in samples]
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
