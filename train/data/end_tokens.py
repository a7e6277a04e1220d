"""Finds the tokens with which answers end in the rows: generation stops at them.

A turn in the middle of a conversation counts only if a tool result follows. Before a user message, some templates end
a turn with another token (gpt-oss: <|end|>), which also occurs within answers.

Shape suffix: t tokens of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zerotune.data.conversations import Conversation
from zerotune.data.preference import Continuation


def ending_spans(example: Conversation | Continuation, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, of the learned `spans` of a row, at whose end generation stops."""
    messages = example.messages if isinstance(example, Conversation) else []
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant" and message.get("learned", True)]
    if len(turns) != len(spans):
        return list(spans[-1:])
    followers = [*(message["role"] for message in messages[1:]), "tool"]  # the last turn always counts
    return [span for span, turn in zip(spans, turns, strict=True) if followers[turn] == "tool"]


def last_tokens(ids_t: NDArray[np.int32], start_t: NDArray[np.int64], ends: Sequence[int]) -> set[int]:
    """The last token before each of `ends` (character positions), if it is in ids_t. start_t: where tokens begin."""
    places = [int(np.searchsorted(start_t, end)) - 1 for end in ends]
    return {int(ids_t[place]) for place in places if place < len(ids_t)}
