"""Prompts with sampled responses, as rows that can be packed.

Shape suffixes: r responses, n tokens of all responses, one response after another, t tokens of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.document import IGNORED, Document
from zerotune.data.conversations import Message

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Trajectory:
    """A prompt and the response that the policy sampled.

    prompt, response: token ids; response includes its end token, if it has one. row: `file:line` of the prompt.
    messages: the prompt as messages; empty if it is plain text. is_blank: whether the response's text is empty or white
    space.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    finished: bool
    row: str
    messages: Messages = ()
    is_blank: bool = False


class Trajectories:
    """Rows for `train.data.micro_batches`. starts: where each response begins among the tokens of all responses."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories = tuple(trajectories)
        self.learned_n: NDArray[np.int32] = np.array([len(one.response) for one in self.trajectories], np.int32)
        self.lengths_n = self.learned_n + np.array([len(one.prompt) for one in self.trajectories], np.int32)
        self.sources_n: NDArray[np.int16] = np.zeros(len(self.trajectories), np.int16)
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.learned_n, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.trajectories)

    def documents(self, index: int) -> list[Document]:
        """Prompt and response as one document; the targets are the tokens of the response."""
        one = self.trajectories[index]
        ids_t = np.array([*one.prompt, *one.response], np.int32)
        targets_t = np.full(len(ids_t), IGNORED, np.int32)
        targets_t[len(one.prompt) - 1 : -1] = one.response
        return [Document(ids_t, targets_t)]

    def row_id(self, index: int) -> str:
        return self.trajectories[index].row

    def places(self, group: Sequence[int]) -> NDArray[np.int64]:
        """Indices of these responses' tokens among the tokens of all responses, in the order of a batch."""
        parts = [np.arange(self.starts[index], self.starts[index + 1]) for index in group]
        return np.concatenate([np.empty(0, np.int64), *parts])


def repetition(response: Sequence[int], size: int = 3) -> float:
    """Share of the response's n-grams (of `size` tokens) that occurred earlier in it."""
    groups = [tuple(response[k : k + size]) for k in range(len(response) - size + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0
