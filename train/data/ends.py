"""The tokens that rows teach the model to end an answer with, found in the rows themselves: generation stops there.

A turn in the middle of a conversation counts only where a tool answers it. Before a user's next message some templates
close a turn with another token (gpt-oss: <|end|>), which within an answer is no end.

Shape suffix: t tokens of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zerotune.data.conversations import Conversation
from zerotune.data.preference import Continuation


def ending_spans(example: Conversation | Continuation, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of the learned `spans` of a row whose end is one at which generation stops."""
    messages = example.messages if isinstance(example, Conversation) else []
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant" and message.get("learned", True)]
    if len(turns) != len(spans):
        return list(spans[-1:])
    followers = [*(message["role"] for message in messages[1:]), "tool"]  # after the last turn anything may come
    return [span for span, turn in zip(spans, turns, strict=True) if followers[turn] == "tool"]


def last_tokens(ids_t: NDArray[np.int32], start_t: NDArray[np.int64], ends: Sequence[int]) -> set[int]:
    """The last token before each of `ends` (characters), where it is among these tokens. start_t: where they begin."""
    places = [int(np.searchsorted(start_t, end)) - 1 for end in ends]
    return {int(ids_t[place]) for place in places if place < len(ids_t)}
