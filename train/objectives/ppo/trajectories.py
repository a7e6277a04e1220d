"""Prompts with their answers, as rows that can be packed, and what was found about each token of the answers.

Shape suffixes: e episodes, n tokens of all answers, one episode after another, t tokens of one row.
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
class Episode:
    """prompt, answer: token ids; the end token is part of the answer where there is one. row: where the prompt stands.
    messages: the prompt, where it is a conversation; nothing where it is a text. is_blank: whether the answer's text,
    up to where it stops, says nothing.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    finished: bool
    row: str
    messages: Messages = ()
    is_blank: bool = False


class Episodes:
    """Rows for `train.data.micro_batches`. starts: where each episode's answer begins among all answers' tokens."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.episodes = tuple(episodes)
        self.learned_n: NDArray[np.int32] = np.array([len(e.answer) for e in self.episodes], np.int32)
        self.lengths_n = self.learned_n + np.array([len(e.prompt) for e in self.episodes], np.int32)
        self.sources_n: NDArray[np.int16] = np.zeros(len(self.episodes), np.int16)
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.learned_n, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.episodes)

    def documents(self, index: int) -> list[Document]:
        """Prompt and answer; the answer's tokens are to be said, each by the one before."""
        episode = self.episodes[index]
        ids_t = np.array([*episode.prompt, *episode.answer], np.int32)
        targets_t = np.full(len(ids_t), IGNORED, np.int32)
        targets_t[len(episode.prompt) - 1 : -1] = episode.answer
        return [Document(ids_t, targets_t)]

    def row_id(self, index: int) -> str:
        """Where the prompt comes from."""
        return self.episodes[index].row

    def places(self, group: Sequence[int]) -> NDArray[np.int64]:
        """Where the tokens of these episodes' answers stand among those of all, in the order of a batch."""
        parts = [np.arange(self.starts[index], self.starts[index + 1]) for index in group]
        return np.concatenate([np.empty(0, np.int64), *parts])


def repetition(answer: Sequence[int], size: int = 3) -> float:
    """Share of the answer's word groups (`size` tokens) that stood in it before."""
    groups = [tuple(answer[k : k + size]) for k in range(len(answer) - size + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0
