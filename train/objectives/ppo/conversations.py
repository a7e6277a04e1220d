"""Rows as conversations, for a reward model that reads messages: what is tokenised no longer says who said what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from train.data.sources import Source
from train.data.tokenize import read_row
from train.objectives.ppo.trajectories import Messages
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.data.raw_row import BadRow

Said = Mapping[tuple[int, str], Messages]  # (number of the source, place of the row) -> all that is said in it


def conversations(sources: Sequence[Source], system: str | None) -> Said:
    """Of all rows that are some. system: see `read_row`."""
    return {(number, row): said for number, source in enumerate(sources) for row, said in _of(source, system)}


def _of(source: Source, system: str | None) -> Iterator[tuple[str, Messages]]:
    for _, _, row, _ in source.rows():
        if isinstance(row, BadRow):
            continue  # told by the data's own reading
        try:
            example = read_row(row, source.config.format, source.config.columns, system, asks=True)
        except RowError:
            continue
        if isinstance(example, Conversation):
            yield row.place, tuple(example.messages)


def before_answer(said: Messages, number: int) -> Messages:
    """What stands before answer `number` (from 0), or before the last one: templates may mark parts of an answer."""
    answers = [place for place, message in enumerate(said) if message["role"] == "assistant"]
    return said[: answers[min(number, len(answers) - 1)]]
