"""Which optimizer steps belong to which rollout, and which to supervised phases in between: known before the first."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from train.config import DurationConfig
from train.config_ppo import PpoConfig
from zerotune.common.errors import UserError


@dataclass(frozen=True)
class Phase:
    """number: of the rollout, or of the supervised phase. start: its first optimizer step. steps: how many it has."""

    kind: Literal["rollout", "supervised"]
    number: int
    start: int
    steps: int

    @property
    def end(self) -> int:
        """The first step that is not its own."""
        return self.start + self.steps


class Phases:
    """All phases of a run in order. rollouts_per_epoch: until every prompt has been answered."""

    def __init__(self, config: PpoConfig, duration: DurationConfig, prompts: int) -> None:
        if duration.max_tokens is not None:
            raise UserError(
                "duration.max_tokens: the length of responses is not known in advance; set max_epochs or max_steps"
            )
        self.rollouts_per_epoch = -(-prompts // config.rollout_prompts)
        most = float("inf") if duration.max_epochs is None else round(duration.max_epochs * self.rollouts_per_epoch)
        last = float("inf") if duration.max_steps is None else duration.max_steps
        self.all = list(_phases(config, max(most, 1), last))
        if not self.all:
            raise UserError(
                f"duration.max_steps: {duration.max_steps} is less than one rollout's "
                f"{config.epochs * config.minibatches} steps (ppo.epochs x ppo.minibatches); raise it"
            )
        self.ends = [phase.end for phase in self.all]
        rollouts = [phase for phase in self.all if phase.kind == "rollout"]
        self.rollout_starts = frozenset(phase.start for phase in rollouts)
        self.rollout_ends = frozenset(phase.end for phase in rollouts)
        whole = rollouts[self.rollouts_per_epoch - 1 :: self.rollouts_per_epoch]
        ends = [self._settled(phase) for phase in whole]
        self.epoch_ends = tuple(dict.fromkeys([*ends, self.ends[-1]]))
        self.last_share = (len(rollouts) % self.rollouts_per_epoch or self.rollouts_per_epoch) / self.rollouts_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.ends[-1]

    def is_between(self, step: int) -> bool:
        """Whether `step` steps are whole phases."""
        return step == 0 or step in self.ends

    def from_step(self, step: int) -> list[Phase]:
        """The phases that begin there or later."""
        return self.all[bisect_right(self.ends, step) :]

    def _settled(self, rollout: Phase) -> int:
        """Where an epoch that ends with this rollout ends: behind the supervised phase that belongs to it."""
        later = self.all[self.all.index(rollout) + 1 :][:1]
        return later[0].end if later and later[0].kind == "supervised" else rollout.end


def _phases(config: PpoConfig, rollouts: float, last: float) -> Iterator[Phase]:
    start = rollout = supervised = 0
    own = config.epochs * config.minibatches
    while rollout < rollouts and start + own <= last:
        yield Phase("rollout", rollout, start, own)
        start, rollout = start + own, rollout + 1
        due = config.supervised_every and rollout % config.supervised_every == 0
        if due and start + config.supervised_steps <= last:
            yield Phase("supervised", supervised, start, config.supervised_steps)
            start, supervised = start + config.supervised_steps, supervised + 1
