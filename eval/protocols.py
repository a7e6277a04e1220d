"""What the modules of `eval` share: tasks, their outcomes, metrics and tables.

A task never sees a model, and the runner never sees a task: between them stand requests and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from zerotune.common.scale import SHARE, Scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zerotune.data.hub import Hub
    from zerotune.data.readers import Row
    from zerotune.inference.prompt import Prompter
    from zerotune.inference.requests import Answer, Head, Request


class Identified(Protocol):
    """An item of a task."""

    @property
    def id(self) -> str:
        """file:line of its row."""
        ...


Item = TypeVar("Item", bound=Identified)
Columns = Mapping[str, "NDArray[np.float64]"]  # name of a number -> that number of each sample


@dataclass(frozen=True)
class Sample:
    """One item's outcome.

    values: numbers that metrics read. shown: what a person wants to see of it. groups: the parts of the data it belongs
    to (subject -> agronomy), for which metrics are shown apart.
    """

    id: str
    values: Mapping[str, float]
    shown: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleMetric:
    """The mean of one number per sample: `Sample.values[name]`. is_share: the number is 1.0 (right) or 0.0 (wrong)."""

    name: str
    higher_is_better: bool
    is_share: bool = False
    scale: Scale = SHARE


@dataclass(frozen=True)
class RatioMetric:
    """A function of one ratio over all samples: the sum of column `top` over that of the columns in `bottom`.

    of_ratio: a factor, or exp; rises. Where the scale has no upper end (losses) intervals and tests are those of the
    ratio, so all that share a top and ask the same rows agree.
    """

    name: str
    higher_is_better: bool
    top: str
    bottom: tuple[str, ...]
    scale: Scale = SHARE
    of_ratio: Callable[[float], float] = float

    def of(self, columns: Columns) -> float:
        """Over all samples; 0 of nothing."""
        below = sum(float(columns[name].sum()) for name in self.bottom)
        return self.of_ratio(float(columns[self.top].sum()) / below if below else 0.0)


@dataclass(frozen=True)
class CorpusMetric:
    """A function of all samples together (BLEU, entity F1); a mean over parts would be another number.

    of_sums: `of` reads nothing but the columns' sums, so columns of one sum give the same; its intervals are quicker.
    fewest: rows for an interval, where it needs more than others.
    too_few: why these samples allow no interval though there are enough of them; empty where they do.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Columns], float]
    of_sums: bool = False
    scale: Scale = SHARE
    fewest: int = 0
    too_few: Callable[[Columns], str] | None = None


Metric = SampleMetric | RatioMetric | CorpusMetric


@dataclass(frozen=True)
class Table:
    """What numbers alone do not say, for the report.

    rows: texts or numbers under the names in `head`; the first column names the row. pairs: whether columns 1 and 2 are
    shares to be drawn as bars. of_data: whether it is the same whatever the model, and so is shown once. shared: how
    many of the first columns are. shares: the columns of shares (0 to 1), shown in percent.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str | float]]
    pairs: bool = False
    of_data: bool = False
    shared: int = 1
    shares: tuple[int, ...] = ()


def unchanged(items: list[Any]) -> list[Any]:
    """Every row is asked."""
    return items


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One evaluation.

    version: raised whenever a number could change. load: a row to an item; raises `RowError` for one
    that does not fit. ask: the requests of one item. score: its outcome, given the answers in the order of requests;
    it needs no model and no file, so training can call it for validation and as a reward.
    bind: an item as one checkpoint sees it (its classes by name, its tokens by word), before it is asked; `score` gets
    the same. Raises UserError where the checkpoint cannot answer it.
    arrange: the items that are asked, from those of all rows (few-shot examples are moved into the others here).
    follow: further requests, given the answers so far (a tool's result, the next turn); none where the item is done.
    tables: what the report shows beside the metrics, from one model's samples.
    head: the kind of checkpoint that can answer. source: a hub data set, a file, or rows, where the user names none.
    max_new_tokens: longest generated answer where the user sets no other.
    """

    name: str
    version: int
    about: str
    load: Callable[[Row], Item]
    ask: Callable[[Item, Prompter], Sequence[Request]]
    score: Callable[[Item, Sequence[Answer]], Sample]
    metrics: tuple[Metric, ...]
    arrange: Callable[[list[Item]], list[Item]] = unchanged
    bind: Callable[[Item, Prompter], Item] | None = None
    follow: Callable[[Item, Sequence[Answer], Prompter], Sequence[Request]] | None = None
    tables: Callable[[Sequence[Sample]], Sequence[Table]] | None = None
    head: Head = "language"
    source: Hub | str | tuple[Row, ...] | None = None
    max_new_tokens: int = 64
