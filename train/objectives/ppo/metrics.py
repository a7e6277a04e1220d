"""Metrics of a rollout and of the steps that learn from it.

Shape suffixes: r responses, n tokens of all responses.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from train.objectives.ppo.experience import Experience
from train.objectives.ppo.trajectories import Trajectories, repetition
from train.protocols import Ranks

Floats = NDArray[np.float64]
SHORTEST = 1e-9  # seconds; a division by 0 is avoided


class Stopwatch:
    """seconds: how long each phase took the last time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measured(self, phase: str) -> Iterator[None]:

        began = time.monotonic()
        yield
        self.seconds[phase] = max(time.monotonic() - began, SHORTEST)


class Updates:
    """Counts of this rank over the optimizer steps of one rollout, which start now.

    clipped: tokens of responses whose ratio is outside the clip range; responses: all of them. trained: all tokens.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.clipped = self.responses = self.trained = 0.0

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Of all ranks together. A collective."""
        clipped, responses, trained = ranks.sum([self.clipped, self.responses, self.trained])
        seconds = max(time.monotonic() - self.began, SHORTEST)
        return {
            "ppo/clip_fraction": clipped / responses,
            "ppo/seconds_updating": seconds,
            "ppo/trained_tokens_per_second": trained / seconds,
        }


def rollout_metrics(
    experience: Experience, reward_r: Floats, parts: Mapping[str, Floats], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Metrics that depend on this rollout alone. seconds: of generating, rewarding and scoring."""
    tokens, trajectories = experience.tokens, experience.trajectories
    return {
        "rollout/reward": float(reward_r.mean()),
        "rollout/reward_deviation": float(reward_r.std()),
        "rollout/reward_min": float(reward_r.min()),
        "rollout/reward_max": float(reward_r.max()),
        **{f"rollout/reward_{name}": float(part_r.mean()) for name, part_r in parts.items()},
        "rollout/kl": float(experience.kl_r.mean()),
        "rollout/entropy": float(tokens["entropy"].mean()),
        **{f"rollout/seconds_{phase}": taken for phase, taken in seconds.items()},
        "rollout/generated_tokens_per_second": int(trajectories.starts[-1]) / seconds["generating"],
        "rollout/scored_tokens_per_second": int(trajectories.lengths_n.sum()) / seconds["scoring"],
        **{f"rollout/{name}": value for name, value in response_metrics(trajectories).items()},
    }


def explained_variance(value_n: Floats, target_n: Floats) -> float:
    """Share of the returns' variance that the values predict: 1 - var(target - value) / var(target); 0 without any."""
    spread = float(target_n.var())
    return 1 - float((target_n - value_n).var()) / spread if spread > 0 else 0.0


def response_metrics(trajectories: Trajectories) -> dict[str, float]:
    each = trajectories.trajectories
    return {
        "response_tokens": float(np.mean([len(one.response) for one in each])),
        "finished": float(np.mean([one.finished for one in each])),
        "empty": float(np.mean([one.is_blank for one in each])),
        "repetition": float(np.mean([repetition(one.response) for one in each])),
    }
