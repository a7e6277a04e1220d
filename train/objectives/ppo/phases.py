"""The phases of a run: rollouts with their optimizer steps, and supervised steps in between. Known before step 1."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from train.config import DurationConfig
from train.config_ppo import PpoConfig
from train.protocols import Plan
from zerotune.common.console import counted
from zerotune.common.errors import UserError


@dataclass(frozen=True)
class Phase:
    """number: index among the phases of its kind. start: its first optimizer step. steps: how many it has."""

    kind: Literal["rollout", "supervised"]
    number: int
    start: int
    steps: int

    @property
    def end(self) -> int:
        """The step after its last one."""
        return self.start + self.steps


class Phases:
    """All phases of a run in order. rollouts_per_epoch: how many use every prompt once."""

    def __init__(self, config: PpoConfig, duration: DurationConfig, prompts: int) -> None:
        if duration.max_tokens is not None:
            raise UserError(
                "duration.max_tokens: the length of responses is not known in advance; set max_epochs or max_steps"
            )
        self.config = config
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
        self.rollouts = [phase for phase in self.all if phase.kind == "rollout"]
        self.rollout_starts = frozenset(phase.start for phase in self.rollouts)
        self.rollout_ends = frozenset(phase.end for phase in self.rollouts)

    def plan(self, prompt_tokens: float, prompts: int, held_out: int) -> Plan:
        """The size of the run. prompt_tokens: mean length of the prompts."""
        own, each = self.config, self.rollouts_per_epoch
        responses = own.rollout_prompts * own.samples_per_prompt
        length = prompt_tokens + own.response_tokens
        ends = [self._epoch_end(rollout) for rollout in self.rollouts[each - 1 :: each]]
        return Plan(
            total_steps=self.ends[-1],
            epoch_ends=tuple(dict.fromkeys([*ends, self.ends[-1]])),
            last_epoch_share=(len(self.rollouts) % each or each) / each,
            tokens_per_step=responses * length / own.minibatches,
            rows_per_step=responses / own.minibatches,
            padding_share=0.0,
            attention_length=length / 2,
            head_share=own.response_tokens / length,
            lines=(
                f"{counted(prompts, 'prompt')}, {held_out:,} held out",
                f"{counted(len(self.rollouts), 'rollout')} of {counted(own.rollout_prompts, 'prompt')},"
                f" {counted(own.samples_per_prompt, 'response')} to each, {counted(own.epochs, 'pass', 'passes')} in"
                f" {counted(own.minibatches, 'step')} each: {counted(self.ends[-1], 'step')}",
            ),
        )

    def require_between(self, key: str, every: int | None) -> None:
        """Raise UserError if something that happens `every` so many steps would happen within a phase."""
        times = range(every, self.ends[-1] + 1, every) if every else ()
        wrong = next((step for step in times if not self.is_between(step)), None)
        if wrong is not None:
            raise UserError(
                f"{key}: step {wrong} is within a rollout of {self.config.epochs * self.config.minibatches} steps; "
                "set a multiple of that, or remove the key for the end of each epoch"
            )

    def is_between(self, step: int) -> bool:
        """Whether no phase is incomplete after `step` steps."""
        return step == 0 or step in self.ends

    def from_step(self, step: int) -> list[Phase]:
        """The phases that begin at `step` or later."""
        return self.all[bisect_right(self.ends, step) :]

    def _epoch_end(self, rollout: Phase) -> int:
        """The end of the epoch whose last rollout this is: after the supervised phase that follows it, if any."""
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
