"""What is watched of a rollout.

Shape suffix: e episodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from train.objectives.ppo.episodes import Episodes, repetition
from train.objectives.ppo.experience import Experience

Floats = NDArray[np.float64]


def of_rollout(
    experience: Experience, reward_e: Floats, parts: Mapping[str, Floats], seconds: tuple[float, float]
) -> dict[str, float]:
    """Everything but what depends on the run so far. seconds: of generation and of scoring."""
    tokens, episodes = experience.tokens, experience.episodes
    generating, scoring = (max(each, 1e-9) for each in seconds)
    return {
        "rollout/reward": float(reward_e.mean()),
        "rollout/reward_deviation": float(reward_e.std()),
        "rollout/reward_min": float(reward_e.min()),
        "rollout/reward_max": float(reward_e.max()),
        **{f"rollout/reward_{name}": float(part_e.mean()) for name, part_e in parts.items()},
        "rollout/kl": float(experience.kl_e.mean()),
        "rollout/entropy": float(tokens["entropy"].mean()),
        "rollout/generated_tokens_per_second": int(episodes.starts[-1]) / generating,
        "rollout/scored_tokens_per_second": int(episodes.lengths_n.sum()) / scoring,
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
        "empty": float(np.mean([len(episode.answer) == 1 and episode.finished for episode in all_])),
        "repetition": float(np.mean([repetition(episode.answer) for episode in all_])),
    }
