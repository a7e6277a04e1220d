"""Metrics of a rollout and of the steps that learn from it.

Shape suffixes: e episodes, n tokens of all answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from train.objectives.ppo.experience import Experience
from train.objectives.ppo.trajectories import Episodes, repetition
from train.protocols import Ranks

Floats = NDArray[np.float64]
SHORTEST = 1e-9  # seconds that anything takes


class Stopwatch:
    """seconds: that each phase took, the last time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """Inside is the phase."""
        began = time.monotonic()
        yield
        self.seconds[phase] = max(time.monotonic() - began, SHORTEST)


class Updates:
    """The optimizer steps of one rollout, from now on; what this rank saw of them.

    outside, answered: tokens of answers outside the clip range, and all. trained: tokens of micro-batches.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.outside = self.answered = self.trained = 0.0

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Sums over all ranks, which call it together."""
        outside, answered, trained = ranks.sum([self.outside, self.answered, self.trained])
        seconds = max(time.monotonic() - self.began, SHORTEST)
        return {
            "ppo/clip_fraction": outside / answered,
            "ppo/seconds_updating": seconds,
            "ppo/trained_tokens_per_second": trained / seconds,
        }


def of_rollout(
    experience: Experience, reward_e: Floats, parts: Mapping[str, Floats], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Everything but what depends on the run so far. seconds: of generating, rewarding and scoring."""
    tokens, episodes = experience.tokens, experience.episodes
    return {
        "rollout/reward": float(reward_e.mean()),
        "rollout/reward_deviation": float(reward_e.std()),
        "rollout/reward_min": float(reward_e.min()),
        "rollout/reward_max": float(reward_e.max()),
        **{f"rollout/reward_{name}": float(part_e.mean()) for name, part_e in parts.items()},
        "rollout/kl": float(experience.kl_e.mean()),
        "rollout/entropy": float(tokens["entropy"].mean()),
        **{f"rollout/seconds_{phase}": taken for phase, taken in seconds.items()},
        "rollout/generated_tokens_per_second": int(episodes.starts[-1]) / seconds["generating"],
        "rollout/scored_tokens_per_second": int(episodes.lengths_n.sum()) / seconds["scoring"],
        **{f"rollout/{name}": value for name, value in of_answers(episodes).items()},
    }


def explained_variance(value_n: Floats, target_n: Floats) -> float:
    """How much of the returns the values foresaw: 1 - var(target - value) / var(target); 0 where nothing varies."""
    spread = float(target_n.var())
    return 1 - float((target_n - value_n).var()) / spread if spread > 0 else 0.0


def of_answers(episodes: Episodes) -> dict[str, float]:
    """Lengths and ends of the answers."""
    all_ = episodes.episodes
    return {
        "response_tokens": float(np.mean([len(episode.answer) for episode in all_])),
        "finished": float(np.mean([episode.finished for episode in all_])),
        "empty": float(np.mean([episode.is_blank for episode in all_])),
        "repetition": float(np.mean([repetition(episode.answer) for episode in all_])),
    }
