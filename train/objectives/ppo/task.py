"""An evaluation task as a source of prompts and rewards (`ppo.task`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eval.protocols import SampleMetric
from eval.tasks.lookup import find, is_file
from train.data.sources import Source
from train.data.token_dataset import Encoded
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.trajectories import Trajectory
from zerotune.common.errors import UserError
from zerotune.common.files import sha256_file
from zerotune.data.fields import RowError
from zerotune.data.raw_row import BadRow
from zerotune.inference.prompt import Prompter
from zerotune.inference.reasoning import closing_mark, cut_at_stop, decode, strip_reasoning
from zerotune.inference.requests import Generate, Generated


class TaskRows:
    """The items of an evaluation task in the run's data.

    skip: leave out rows that it cannot read. digest: changes with the task's prompts and scores.

    Raises UserError for an unknown task, for rows that it cannot read, and for a task that does not generate text.
    """

    def __init__(self, name: str, sources: Sequence[Source], prompter: Prompter, skip: bool) -> None:
        self.name, self.prompter, self.skip = name, prompter, skip
        try:
            self.task = find(name)
        except UserError as error:
            raise UserError(f"ppo.task: {error}") from error
        if self.task.head != "language":
            self._refuse()
        self.digest = sha256_file(Path(name)) if is_file(name) else f"version {self.task.version}"
        self.items = {row: item for source in sources for row, item in self._items(source)}

    def prompts(self, rows: Encoded) -> Iterator[Prompt | None]:
        """The task's prompt for each row; None for one that was left out."""
        for index in range(len(rows)):
            row = rows.row_id(index)
            if row not in self.items:
                yield None
                continue
            self.prompter.last_messages = ()
            requests = self.task.ask(self.items[row], self.prompter)
            if len(requests) != 1 or not isinstance(requests[0], Generate) or requests[0].images:
                self._refuse()
            yield Prompt(requests[0].prefix_ids, row, requests[0].stop_texts, self.prompter.last_messages)

    def metric(self, wanted: str, key: str) -> Callable[[Sequence[Trajectory]], list[float]]:
        """A function that scores trajectories by one of the task's metrics of single answers; `wanted`, or the first.

        key: for messages. Raises UserError for an unknown metric, and for a task that cannot score single answers.
        """
        known = [metric.name for metric in self.task.metrics if isinstance(metric, SampleMetric)]
        name = wanted or next(iter(known), "")
        if name not in known:
            raise UserError(
                f"{key}: metric: {self.name} has no {wanted or 'metric of single answers'}; it has {', '.join(known)}"
            )
        self._try(name)
        return lambda trajectories: [self._values(trajectory)[name] for trajectory in trajectories]

    def _try(self, name: str) -> None:
        """Score an empty response, to report before any step that the task cannot score."""
        item = next(iter(self.items.values()))
        try:
            self.task.score(item, [Generated("")]).values[name]
        except (LookupError, ValueError) as error:
            raise UserError(
                f"ppo.task: {self.name} cannot score a response to one row without the other rows; choose another task"
            ) from error

    def _values(self, trajectory: Trajectory) -> Mapping[str, float]:
        item = self.items[trajectory.row]
        (request,) = self.task.ask(item, self.prompter)
        assert isinstance(request, Generate)
        ids = trajectory.response[:-1] if trajectory.response[-1] in self.prompter.stop_ids else trajectory.response
        text = decode(self.prompter.tokenizer, ids)
        closing = closing_mark(self.prompter.tokenizer, request.prefix_ids)
        cut = cut_at_stop(text, request.stop_texts, closing)
        answer = Generated(text if cut is None else cut, len(ids), trajectory.finished)
        return self.task.score(item, [strip_reasoning(answer, request, self.prompter.tokenizer)]).values

    def _items(self, source: Source) -> Iterator[tuple[str, Any]]:
        for _, _, row, _ in source.rows():
            if isinstance(row, BadRow):
                continue  # reported when the data was prepared
            try:
                yield row.place, self.task.load(row)
            except RowError as error:
                if self.skip:
                    continue
                raise UserError(
                    f"{row.place}: {error}; so ppo.task {self.name} cannot read this row, or cannot score a response "
                    "to it; fix it, or skip such rows with data.on_bad_row: skip"
                ) from error

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"ppo.task: {self.name} does not generate one response per row, which PPO needs; choose another task"
        )
