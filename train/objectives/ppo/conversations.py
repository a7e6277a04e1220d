"""Rows as conversations, for reward models that read messages: tokenised rows no longer have roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from train.data.sources import Source
from train.data.tokenize import read_row
from train.objectives.ppo.trajectories import Messages
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.data.raw_row import BadRow

MessagesByRow = Mapping[tuple[int, str], Messages]  # (index of the source, `file:line`) -> messages


def read_conversations(sources: Sequence[Source], system: str | None) -> MessagesByRow:
    """The messages of all rows that are conversations. system: see `read_row`."""
    return {
        (index, row): messages for index, source in enumerate(sources) for row, messages in _of_source(source, system)
    }


def _of_source(source: Source, system: str | None) -> Iterator[tuple[str, Messages]]:
    for _, _, row, _ in source.rows():
        if isinstance(row, BadRow):
            continue  # reported when the data was prepared
        try:
            example = read_row(row, source.config.format, source.config.columns, system, asks=True)
        except RowError:
            continue
        if isinstance(example, Conversation):
            yield row.place, tuple(example.messages)


def messages_before(messages: Messages, number: int) -> Messages:
    """The messages before answer `number` (from 0); at most the last one: templates may mark parts of an answer."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[min(number, len(answers) - 1)]]
