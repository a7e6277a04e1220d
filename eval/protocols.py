"""Shared interfaces of `eval`: tasks, samples, metrics and tables.

Tasks and models never use each other directly; they exchange requests and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from zerotune.common.metric_format import SHARE, Scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zerotune.data.hub import Hub
    from zerotune.data.raw_row import Row
    from zerotune.inference.prompt import Prompter
    from zerotune.inference.requests import Answer, Head, Request


class Identified(Protocol):
    """Any item of a task."""

    @property
    def id(self) -> str:
        """file:line of its row."""
        ...


Item = TypeVar("Item", bound=Identified)
Columns = Mapping[str, "NDArray[np.float64]"]  # name of a value or list -> that of each sample; a list is an object


@dataclass(frozen=True)
class Sample:
    """The scored outcome of one item.

    values: numbers for the metrics. shown: content for the report. groups: subsets of the data that the item belongs to
    (subject -> agronomy); metrics are also reported for each subset. lists: any number of numbers, for `ListMetric`.
    """

    id: str
    values: Mapping[str, float]
    shown: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


Incomparable = Callable[[Columns, Columns], str]  # why a metric of two models cannot be compared, else ""


def comparable(base: Columns, other: Columns) -> str:
    """The default of `incomparable`."""
    return ""


@dataclass(frozen=True)
class SampleMetric:
    """The mean of `Sample.values[name]`. is_share: each value is 1.0 (correct) or 0.0 (wrong)."""

    name: str
    higher_is_better: bool
    is_share: bool = False
    scale: Scale = SHARE
    incomparable: Incomparable = comparable


@dataclass(frozen=True)
class RatioMetric:
    """A function of one ratio over all samples: the sum of column `top` over that of the columns in `bottom`.

    of_ratio: an increasing function, such as a factor or exp. On a scale without upper end (losses), intervals and
    tests are those of the ratio, so that metrics with the same `top` agree. missing: why the samples of a model may
    lack a column; then, and where the denominator is 0, the metric has no value. is_count: `top` counts
    a part of what `bottom` counts.
    """

    name: str
    higher_is_better: bool
    top: str
    bottom: tuple[str, ...]
    scale: Scale = SHARE
    of_ratio: Callable[[float], float] = float
    incomparable: Incomparable = comparable
    missing: str = ""
    is_count: bool = False

    def of(self, columns: Columns) -> float:
        """The metric over all samples; 0 if the denominator is 0."""
        denominator = sum(float(columns[name].sum()) for name in self.bottom)
        return self.of_ratio(float(columns[self.top].sum()) / denominator if denominator else 0.0)


@dataclass(frozen=True)
class CorpusMetric:
    """A function of all samples together (BLEU, entity F1), not a mean over samples.

    of_sums: `of` depends only on the sums of the columns, which makes intervals faster to compute.
    fewest: minimum rows for an interval, if more than for other metrics.
    too_few: returns the reason why these samples allow no interval, else "".
    """

    name: str
    higher_is_better: bool
    of: Callable[[Columns], float]
    of_sums: bool = False
    scale: Scale = SHARE
    fewest: int = 0
    too_few: Callable[[Columns], str] | None = None


@dataclass(frozen=True)
class ListMetric:
    """A function of all numbers of `Sample.lists[column]` together, such as a median.

    function: [s], of sorted numbers [m] with weights [s, m]. fewest: minimum rows for an interval.
    is_smooth: intervals by the jackknife, which fails for medians; else by the bootstrap of rows. too_few: returns the
    reason why these numbers allow no interval, else "".
    """

    name: str
    higher_is_better: bool
    column: str
    function: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    scale: Scale
    fewest: int
    is_smooth: bool = False
    too_few: Callable[[NDArray[np.float64]], str] | None = None


Metric = SampleMetric | RatioMetric | CorpusMetric | ListMetric


@dataclass(frozen=True)
class Table:
    """A table for the report.

    rows: texts or numbers under the names in `head`; the first column names the row. pairs: draw columns 1 and 2, which
    are shares, as bars. of_data: the table does not depend on the model and is shown once. shared: number of leading
    columns that do not depend on the model. shares: columns of shares (0 to 1), shown in percent. in_summary: shown
    with the metrics, in the terminal too.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str | float]]
    pairs: bool = False
    of_data: bool = False
    shared: int = 1
    shares: tuple[int, ...] = ()
    in_summary: bool = False


def unchanged(items: list[Any]) -> list[Any]:
    """The default of `Task.arrange`."""
    return items


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One evaluation task.

    version: raised whenever a result could change. load: converts a row to an item; raises `RowError`.
    ask: the requests of an item. score: the sample of an item, given the answers in the order of its requests. It uses
    neither model nor files, so that training can call it for validation and as a reward.
    bind: adapts an item to one checkpoint (class names, tokens per word) before `ask` and `score`; raises UserError if
    the checkpoint does not fit.
    arrange: selects items from all rows, and adds few-shot examples to them.
    follow: further requests, given the answers so far (a tool's result, the next turn); empty when the item is done.
    tables: tables for the report, from one model's samples.
    head: the kind of checkpoint that the task needs. source: default data: a hub data set, a file, or rows.
    max_new_tokens: default length limit of generated answers. own_columns: whether rows have columns that are no fields
    of a row format.
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
    own_columns: bool = False
