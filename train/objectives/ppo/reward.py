"""What answers are worth: named parts, each a number for an episode, and their weighted sum.

Shape suffix: e episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config_ppo import RewardConfig
from train.models.digest import model_digest
from train.objectives.ppo.episodes import Episode, repetition
from train.objectives.ppo.judge import Judge
from train.objectives.ppo.task import TaskRows
from train.protocols import Ranks

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Score = Callable[[Sequence[Episode]], list[float]]


@dataclass(frozen=True)
class Rewarded:
    """total_e: the weighted sum. parts: each of them, before its weight."""

    total_e: Floats
    parts: Mapping[str, Floats]


class Reward:
    """All parts. Checks them when it is made, before any step.

    precision: of classifiers. not_finite: values so far that were no numbers; they count as 0. digests: of what scores,
    so that a resumed run is not paid by another judge.
    """

    def __init__(
        self, parts: Sequence[RewardConfig], tokenizer: Any, task: TaskRows | None, precision: str, ranks: Ranks
    ) -> None:
        self.ranks = ranks
        self.weights = {part.name or part.kind: part.weight for part in parts}
        self.scores: dict[str, Score] = {
            part.name or part.kind: _score(part, tokenizer, task, precision, ranks) for part in parts
        }
        self.digests = {f"reward {part.name or part.kind}": model_digest(part.path) for part in parts if part.path}
        if task is not None:
            self.digests["ppo.task"] = task.digest
        self.not_finite = 0

    def __call__(self, episodes: Sequence[Episode]) -> Rewarded:
        """Known to every rank; each rank scores its share."""
        mine = range(self.ranks.index, len(episodes), self.ranks.count)
        own = [episodes[k] for k in mine]
        found = np.zeros((len(self.scores), len(episodes)))
        for number, score in enumerate(self.scores.values()):
            found[number, list(mine)] = score(own) if own else []
        bad = ~np.isfinite(found)
        joined = np.array(self.ranks.sum(np.where(bad, 0.0, found).ravel().tolist())).reshape(found.shape)
        self._tell(int(self.ranks.sum([float(bad.sum())])[0]))
        parts = dict(zip(self.scores, joined, strict=True))
        weighted = (self.weights[name] * part_e for name, part_e in parts.items())
        return Rewarded(sum(weighted, np.zeros(len(episodes))), parts)

    def _tell(self, bad: int) -> None:
        if bad and not self.not_finite and self.ranks.index == 0:
            log.warning("%d rewards are no finite numbers and count as 0; rollout/not_finite goes on counting", bad)
        self.not_finite += bad


def _score(part: RewardConfig, tokenizer: Any, task: TaskRows | None, precision: str, ranks: Ranks) -> Score:
    key = f"ppo.reward, part {part.name or part.kind}"
    if part.kind == "model":
        return Judge(part, key, tokenizer, precision, ranks.device)
    if part.kind == "task":
        assert task is not None
        return task.metric(part.metric, key)
    simple: Mapping[str, Callable[[Episode], float]] = {
        "repetition": lambda episode: repetition(episode.answer),
        "length": lambda episode: float(len(episode.answer)),
        "unfinished": lambda episode: float(not episode.finished),
    }
    return lambda episodes: [simple[part.kind](episode) for episode in episodes]
