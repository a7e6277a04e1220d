"""What an evaluation found: result.json (docs/evaluation.md documents it) and the samples behind it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.protocols import Sample, Table
from zerotune.common.masking import mask_all
from zerotune.models.run_facts import RunFacts

SCHEMA = "zerotune.evaluation"
SCHEMA_VERSION = 7


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint. digests: sha256 of weights, tokenizer and chat template. origin: None where no run made it.

    template_date: the day that its chat template was told; None where it reads no clock, or was not used.
    """

    name: str
    path: str
    precision: str
    context_tokens: int | None
    digests: Mapping[str, str]
    origin: RunFacts | None = None
    template_date: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A metric of one model with its 95 % interval; where the samples allow none, reason says why."""

    model: str
    value: float
    low: float | None
    high: float | None
    method: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """`model` minus the baseline on the same samples (of perplexities `model` / baseline), with its 95 % interval.

    won: samples where `model` is better. test, p_value: of "there is no difference"; p_holm: corrected for all
    comparisons of the evaluation. detectable: the smallest true difference (a ratio where value is one) that these
    samples would show 4 times of 5. reason: why it was not tested.
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
    """The metric over one part of the samples: by `group` (subject), the part `name` (agronomy)."""

    group: str
    name: str
    samples: int
    estimates: Sequence[Estimate]


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task.

    level: sample (a mean over samples) or corpus (a function of all of them). is_share: the share of right samples.
    scale: the values it can take (`zerotune.common.scale`); on the scale "perplexity" differences are ratios.
    groups: the same for the parts of the data, where the task names any.
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
    """A sample that stands in the training data. how: row (the same), words (the same but for case, punctuation and
    spaces) or passage (as many words in a row as were looked for). place: file:line of the training row.
    """

    id: str
    how: str
    place: str


@dataclass(frozen=True)
class Contamination:
    """Samples that stand in the training data, and the metrics without them.

    training: files that were compared -> rows in them. missing: training data that could not be, and why. found: at
    most one for each sample. clean: samples that are left; metrics: over these, none where all or none are left.
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
    """What was asked where `--max_rows` asks fewer than there are: rows of `of_rows`, from files of `of_files`."""

    rows: int
    of_rows: int
    files: int
    of_files: int


@dataclass(frozen=True)
class TaskResult:
    """One task.

    data: file -> sha256. samples: rows scored for every model. seconds: model -> time of answering, loading left out.
    tokens: model -> how many went through it meanwhile: what prompts share once, padding not. reused: model -> requests
    whose answers were known, and so cost neither. tables: model -> what its samples say beside the metrics.
    contamination: None where there was no training data to compare with. cut_short: model -> ids of rows for
    whose whole answer, or next turn, try or tool call, the context had no room. only_reasoning: model -> ids of rows
    with an answer that ended within its reasoning, which counts as no answer. fewer: None where all rows were asked.
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
    fewer: Subsample | None = None


@dataclass(frozen=True)
class Result:
    """Everything but the samples. The first model is the baseline. encoder: by which meanings were compared, if any.

    code: the commit of the evaluator itself and whether its files differed; None where it ran from no repository.
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
        """JSON; a number that is not finite becomes null, a secret of the environment ***."""
        shown = _finite(mask_all(dataclasses.asdict(self)))
        return json.dumps(shown, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """samples: task -> model -> its samples, in the order of the rows and the same rows for every model.

    outcomes: task -> model but the baseline -> for each sample +1 won, -1 lost, 0 tied, by the task's first metric.
    """

    result: Result
    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    outcomes: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)


def sample_lines(samples: Sequence[Sample]) -> str:
    """JSONL: id (file:line), the numbers that the metrics read, and what was asked and answered."""
    rows = [_finite({"id": sample.id, **sample.groups, **sample.values, **sample.shown}) for sample in samples]
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
