"""What answers are worth: named parts, each a number for an episode, and their weighted sum.

Shape suffixes: e episodes, p parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config_ppo import RewardConfig
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.reward_scorer import Judge
from train.objectives.ppo.task import TaskRows
from train.objectives.ppo.trajectories import Episode, repetition
from train.protocols import Ranks
from zerotune.models.weights_digest import config_digest, model_digest

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Score = Callable[[Sequence[Episode]], list[float]]
COUNTS = ("not_finite", "judged_in_part")


@dataclass(frozen=True)
class Rewarded:
    """total_e: the weighted sum. parts: each of them, before its weight."""

    total_e: Floats
    parts: Mapping[str, Floats]


class Reward:
    """All parts. Checks them when it is made, before any step.

    precision: of classifiers. digests: of what scores, so that a resumed run is not paid by another judge.
    not_finite: values so far that were no numbers; such a value counts as the least that an answer was worth beside it.
    judged_in_part: readings so far of answers that were too long for a classifier.
    """

    def __init__(
        self,
        parts: Sequence[RewardConfig],
        tokenizer: Any,
        task: TaskRows | None,
        precision: str,
        ranks: Ranks,
        day: date | None = None,
    ) -> None:
        self.ranks = ranks
        self.weights = {part.name or part.kind: part.weight for part in parts}
        self.scores: dict[str, Score] = {
            part.name or part.kind: _score(part, tokenizer, task, precision, ranks, day) for part in parts
        }
        stored = {part.name or part.kind: part.path for part in parts if part.path}
        self.digests = {f"reward {name}": model_digest(path) for name, path in stored.items()}
        self.digests |= {f"config.json of the reward {name}": config_digest(path) for name, path in stored.items()}
        if task is not None:
            self.digests["ppo.task"] = task.digest
        self.judges = [score for score in self.scores.values() if isinstance(score, Judge)]
        self.not_finite = self.judged_in_part = 0

    def __call__(self, episodes: Sequence[Episode]) -> Rewarded:
        """Known to every rank; each rank scores its share."""
        mine = range(self.ranks.index, len(episodes), self.ranks.count)
        own = [episodes[k] for k in mine]
        found = np.zeros((len(self.scores), len(episodes)))
        for judge in self.judges:
            judge.in_part = 0
        for number, score in enumerate(self.scores.values()):
            found[number, list(mine)] = score(own) if own else []
        bad = ~np.isfinite(found)
        values, is_bad = self._joined(np.stack([np.where(bad, 0.0, found), bad]))
        parts = {
            name: _finite(value_e, bad_e > 0, self.weights[name] >= 0)
            for name, value_e, bad_e in zip(self.scores, values, is_bad, strict=True)
        }
        self._tell_bad(int(is_bad.sum()))
        if self.judges:
            self._tell_in_part(self._joined(np.array([float(judge.in_part) for judge in self.judges])))
        weighted = (self.weights[name] * part_e for name, part_e in parts.items())
        return Rewarded(sum(weighted, np.zeros(len(episodes))), parts)

    def state(self) -> dict[str, float]:
        """What was counted so far."""
        return {name: float(getattr(self, name)) for name in COUNTS}

    def resume(self, state: Mapping[str, float]) -> None:
        """Take up what `state` gave."""
        self.not_finite, self.judged_in_part = (int(state[name]) for name in COUNTS)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, before any step, for a prompt that a judge cannot read."""
        for judge in self.judges:
            judge.require(prompts)

    @property
    def reads_messages(self) -> bool:
        """Whether a conversation is more to one of the reward models than its text."""
        return any(judge.reads_messages for judge in self.judges)

    def _joined(self, values: Floats) -> Floats:
        """The sum over ranks."""
        return np.array(self.ranks.sum(values.ravel().tolist())).reshape(values.shape)

    def _tell_bad(self, bad: int) -> None:
        if bad and not self.not_finite and self.ranks.index == 0:
            log.warning(
                "%d rewards are not finite and are replaced by the worst of their component in the rollout; "
                "rollout/not_finite counts them from now on",
                bad,
            )
        self.not_finite += bad

    def _tell_in_part(self, counts: Floats) -> None:
        """counts: of each judge, of these episodes."""
        if counts.any() and not self.judged_in_part and self.ranks.index == 0:
            judge = self.judges[int(counts.argmax())]
            log.warning(
                "%s: %d prompts with their responses exceed its context of %d tokens; it reads only their end. "
                "rollout/judged_in_part counts them from now on. Lower ppo.prompt_tokens or ppo.response_tokens, or "
                "use another model",
                judge.key,
                counts.max(),
                judge.limit,
            )
        self.judged_in_part += int(counts.sum())


def _finite(value_e: Floats, bad_e: Bools, more_is_better: bool) -> Floats:
    """With the worst of the good values in place of the bad ones, so that nothing is gained by breaking a judge; 0
    where none is good.
    """
    good = value_e[~bad_e]
    worst = 0.0 if not len(good) else good.min() if more_is_better else good.max()
    return np.where(bad_e, worst, value_e)


def _score(
    part: RewardConfig, tokenizer: Any, task: TaskRows | None, precision: str, ranks: Ranks, day: date | None
) -> Score:
    key = f"ppo.reward, part {part.name or part.kind}"
    if part.kind == "model":
        return Judge(part, key, tokenizer, precision, ranks.device, day)
    if part.kind == "task":
        assert task is not None
        return task.metric(part.metric, key)
    simple: Mapping[str, Callable[[Episode], float]] = {
        "repetition": lambda episode: repetition(episode.answer),
        "length": lambda episode: float(len(episode.answer)),
        "unfinished": lambda episode: float(not episode.finished),
    }
    return lambda episodes: [simple[part.kind](episode) for episode in episodes]
