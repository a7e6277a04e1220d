"""Rewards of responses: the weighted sum of named components.

Shape suffixes: r responses.
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
from train.objectives.ppo.reward_scorer import RewardScorer
from train.objectives.ppo.task import TaskRows
from train.objectives.ppo.trajectories import Trajectory, repetition
from train.protocols import Ranks
from zerotune.models.weights_digest import config_digest, model_digest

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Score = Callable[[Sequence[Trajectory]], list[float]]
COUNTS = ("not_finite", "judged_in_part")


@dataclass(frozen=True)
class Rewards:
    """total_r: the weighted sum. components: each of them, before its weight."""

    total_r: Floats
    components: Mapping[str, Floats]


class Reward:
    """All components of the reward. Raises UserError if one cannot be used.

    precision: of reward models. digests: of what computes rewards, so that a resumed run has the same reward.
    not_finite: values so far that were not finite; each is replaced by the worst value beside it.
    judged_in_part: responses so far that a reward model has read only the end of.
    """

    def __init__(
        self,
        components: Sequence[RewardConfig],
        tokenizer: Any,
        task: TaskRows | None,
        precision: str,
        ranks: Ranks,
        day: date | None = None,
    ) -> None:
        self.ranks = ranks
        named = {one.name or one.kind: one for one in components}
        self.weights = {name: one.weight for name, one in named.items()}
        self.scores = {name: _score(name, one, tokenizer, task, precision, ranks, day) for name, one in named.items()}
        stored = {name: one.path for name, one in named.items() if one.path}
        self.digests = {f"reward {name}": model_digest(path) for name, path in stored.items()}
        self.digests |= {f"config.json of the reward {name}": config_digest(path) for name, path in stored.items()}
        if task is not None:
            self.digests["ppo.task"] = task.digest
        self.scorers = [score for score in self.scores.values() if isinstance(score, RewardScorer)]
        self.not_finite = self.judged_in_part = 0

    def __call__(self, trajectories: Sequence[Trajectory]) -> Rewards:
        """Every rank scores a share; all get the rewards of all trajectories. A collective."""
        mine = range(self.ranks.index, len(trajectories), self.ranks.count)
        own = [trajectories[k] for k in mine]
        found = np.zeros((len(self.scores), len(trajectories)))
        for scorer in self.scorers:
            scorer.truncated = 0
        for number, score in enumerate(self.scores.values()):
            found[number, list(mine)] = score(own) if own else []
        bad = ~np.isfinite(found)
        values, is_bad = self._sum(np.stack([np.where(bad, 0.0, found), bad]))
        components = {
            name: _finite(value_r, bad_r > 0, self.weights[name] >= 0)
            for name, value_r, bad_r in zip(self.scores, values, is_bad, strict=True)
        }
        self._count_bad(int(is_bad.sum()))
        if self.scorers:
            self._count_truncated(self._sum(np.array([float(scorer.truncated) for scorer in self.scorers])))
        weighted = (self.weights[name] * value_r for name, value_r in components.items())
        return Rewards(sum(weighted, np.zeros(len(trajectories))), components)

    def state(self) -> dict[str, float]:
        """The counts so far."""
        return {name: float(getattr(self, name)) for name in COUNTS}

    def resume(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        self.not_finite, self.judged_in_part = (int(state[name]) for name in COUNTS)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError for a prompt that a reward model cannot read."""
        for scorer in self.scorers:
            scorer.require(prompts)

    @property
    def reads_messages(self) -> bool:
        """Whether a reward model reads conversations as messages, through its own chat template."""
        return any(scorer.reads_messages for scorer in self.scorers)

    def _sum(self, values: Floats) -> Floats:
        """Over ranks."""
        return np.array(self.ranks.sum(values.ravel().tolist())).reshape(values.shape)

    def _count_bad(self, bad: int) -> None:
        if bad and not self.not_finite and self.ranks.index == 0:
            log.warning(
                "%d rewards are not finite and are replaced by the worst of their component in the rollout; "
                "rollout/not_finite counts them from now on",
                bad,
            )
        self.not_finite += bad

    def _count_truncated(self, counts: Floats) -> None:
        """counts: of each scorer, in this rollout."""
        if counts.any() and not self.judged_in_part and self.ranks.index == 0:
            scorer = self.scorers[int(counts.argmax())]
            log.warning(
                "%s: %d prompts with their responses exceed its context of %d tokens; it reads only their end. "
                "rollout/judged_in_part counts them from now on. Lower ppo.prompt_tokens or ppo.response_tokens, or "
                "use another model",
                scorer.key,
                counts.max(),
                scorer.limit,
            )
        self.judged_in_part += int(counts.sum())


def _finite(value_r: Floats, bad_r: Bools, more_is_better: bool) -> Floats:
    """Bad values replaced by the worst of the others, so that the policy gains nothing by breaking a reward model; by 0
    if all are bad.
    """
    good = value_r[~bad_r]
    worst = 0.0 if not len(good) else good.min() if more_is_better else good.max()
    return np.where(bad_r, worst, value_r)


def _score(
    name: str,
    component: RewardConfig,
    tokenizer: Any,
    task: TaskRows | None,
    precision: str,
    ranks: Ranks,
    day: date | None,
) -> Score:
    key = f"ppo.reward, component {name}"
    if component.kind == "model":
        return RewardScorer(component, key, tokenizer, precision, ranks.device, day)
    if component.kind == "task":
        assert task is not None
        return task.metric(component.metric, key)
    simple: Mapping[str, Callable[[Trajectory], float]] = {
        "repetition": lambda one: repetition(one.response),
        "length": lambda one: float(len(one.response)),
        "unfinished": lambda one: float(not one.finished),
    }
    return lambda trajectories: [simple[component.kind](one) for one in trajectories]
