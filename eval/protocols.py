"""The shapes that the rooms of `eval` share: tasks, what they ask of a model, what comes back, and metrics.

A task never sees a model, and the runner never sees a task: between them stand requests and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.prompt import Prompter
    from eval.rows import Example


class Identified(Protocol):
    """An item of a task."""

    @property
    def id(self) -> str:
        """file:line of its row."""
        ...


Item = TypeVar("Item", bound=Identified)
Columns = Mapping[str, "NDArray[np.float64]"]  # name of a number -> that number of each sample


@dataclass(frozen=True)
class Score:
    """How probable is `continuation_ids` after `prefix_ids`? Neither may be empty.

    bytes: the UTF-8 bytes that the continuation stands for, where the asker needs them back.
    """

    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    bytes: int = 0


@dataclass(frozen=True)
class Generate:
    """Continue `prefix_ids` greedily until one of `stop_ids` or `max_new_tokens`."""

    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...]


Request = Score | Generate


@dataclass(frozen=True)
class Scored:
    """log_prob: natural logarithm, summed over the continuation's `tokens`. bytes: as asked."""

    log_prob: float
    tokens: int
    bytes: int = 0


@dataclass(frozen=True)
class Generated:
    """text: without the stop token and other special tokens. finished: whether a stop token came before the limit."""

    text: str
    tokens: int = 0
    finished: bool = True


Answer = Scored | Generated


@dataclass(frozen=True)
class Sample:
    """One item's outcome. values: numbers that metrics read. shown: what a person wants to see of it."""

    id: str
    values: Mapping[str, float]
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleMetric:
    """The mean of one number per sample: `Sample.values[name]`. is_share: the number is 1.0 (right) or 0.0 (wrong)."""

    name: str
    higher_is_better: bool
    is_share: bool = False


@dataclass(frozen=True)
class CorpusMetric:
    """A function of all samples together (perplexity, BLEU, entity F1); a mean over parts would be another number."""

    name: str
    higher_is_better: bool
    of: Callable[[Columns], float]


Metric = SampleMetric | CorpusMetric


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One evaluation.

    version: raised whenever a number could change. load: a row to an item; raises `eval.rows.BadExampleError` for one
    that does not fit. ask: the requests of one item. score: its outcome, given the answers in the order of requests;
    it needs no model and no file, so training can call it for validation and as a reward.
    """

    name: str
    version: int
    about: str
    load: Callable[[Example], Item]
    ask: Callable[[Item, Prompter], Sequence[Request]]
    score: Callable[[Item, Sequence[Answer]], Sample]
    metrics: tuple[Metric, ...]
