"""Rows as an evaluation task reads them: its prompts are asked, and its score of an answer is a reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eval.protocols import SampleMetric
from eval.tasks.lookup import find, is_file
from train.data.sources import Source
from train.data.token_dataset import Encoded
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.trajectories import Episode
from zerotune.common.errors import UserError
from zerotune.common.files import sha256_file
from zerotune.data.fields import RowError
from zerotune.data.raw_row import BadRow
from zerotune.inference.prompt import Prompter
from zerotune.inference.reasoning import closing_mark, cut_at_stop, decode, strip_reasoning
from zerotune.inference.requests import Generate, Generated


class TaskRows:
    """The items of an evaluation task over the run's data files. Only an item's first answer is asked for.

    skip: leave out rows that it cannot read. digest: tells its prompts and scores from those of a changed task.

    Raises UserError for an unknown task, rows that it cannot read, and one that asks for something else than an answer.
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
        """What the task asks about each row; None for one that was left out."""
        for index in range(len(rows)):
            row = rows.row_id(index)
            if row not in self.items:
                yield None
                continue
            self.prompter.last_messages = ()
            asked = self.task.ask(self.items[row], self.prompter)
            if len(asked) != 1 or not isinstance(asked[0], Generate) or asked[0].images:
                self._refuse()
            yield Prompt(asked[0].prefix_ids, row, asked[0].stop_texts, self.prompter.last_messages)

    def metric(self, wanted: str, key: str) -> Callable[[Sequence[Episode]], list[float]]:
        """Scores episodes by one of the task's metrics of single answers; its first one where `wanted` names none."""
        known = [metric.name for metric in self.task.metrics if isinstance(metric, SampleMetric)]
        name = wanted or next(iter(known), "")
        if name not in known:
            raise UserError(
                f"{key}: metric: {self.name} has no {wanted or 'metric of single answers'}; it has {', '.join(known)}"
            )
        self._try(name)
        return lambda episodes: [self._values(episode)[name] for episode in episodes]

    def _try(self, name: str) -> None:
        """Score an answer that says nothing: what cannot be scored is told before any step."""
        item = next(iter(self.items.values()))
        try:
            self.task.score(item, [Generated("")]).values[name]
        except (LookupError, ValueError) as error:
            raise UserError(
                f"ppo.task: {self.name} cannot score a response to one row without the other rows; choose another task"
            ) from error

    def _values(self, episode: Episode) -> Mapping[str, float]:
        item = self.items[episode.row]
        (asked,) = self.task.ask(item, self.prompter)
        assert isinstance(asked, Generate)
        ids = episode.answer[:-1] if episode.answer[-1] in self.prompter.stop_ids else episode.answer
        text = decode(self.prompter.tokenizer, ids)
        closing = closing_mark(self.prompter.tokenizer, asked.prefix_ids)
        cut = cut_at_stop(text, asked.stop_texts, closing)
        answer = Generated(text if cut is None else cut, len(ids), episode.finished)
        return self.task.score(item, [strip_reasoning(answer, asked, self.prompter.tokenizer)]).values

    def _items(self, source: Source) -> Iterator[tuple[str, Any]]:
        for _, _, row, _ in source.rows():
            if isinstance(row, BadRow):
                continue  # told by the data's own reading
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
