"""A rollout, what it teaches, and the batches of the steps that learn it.

Shape suffixes: e episodes, n tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape, collate, micro_batches
from train.objectives.ppo import advantages
from train.objectives.ppo.trajectories import Episodes
from train.protocols import Batch, Ranks

Floats = NDArray[np.float64]
TERMS = ("policy", "value", "kl", "entropy")  # of the loss, over tokens of answers


@dataclass(frozen=True)
class Experience:
    """tokens: of each token of the answers its log_p, entropy, reference and value as of the rollout, what it was worth
    (advantage, target) and its weight in the loss. kl_e: nats of each answer from the reference.
    """

    episodes: Episodes
    tokens: Mapping[str, Floats]
    kl_e: Floats

    @classmethod
    def of(
        cls, episodes: Episodes, reward_e: Floats, scored: Mapping[str, Floats], config: PpoConfig, kl_weight: float
    ) -> Experience:
        """What answers with these rewards and scores teach."""
        starts = episodes.starts
        kl_n = advantages.kl_of_tokens(scored["log_p"], scored["reference"], config.kl_estimator)
        kl_e = advantages.per_episode(advantages.kl_of_tokens(scored["log_p"], scored["reference"], "k1"), starts)
        in_reward = kl_weight if config.kl_in == "reward" else 0.0
        advantage_n, target_n = advantages.compute_advantages(
            reward_e, in_reward * kl_n, scored["value"], starts, config
        )
        weight_n = np.ones_like(kl_n)
        if config.level == "sequence":
            weight_n = 1 / advantages.per_token(np.diff(starts).astype(np.float64), starts)
        return cls(episodes, {**scored, "advantage": advantage_n, "target": target_n, "weight": weight_n}, kl_e)

    def batches(self, part: NDArray[np.int64], shape: Shape, ranks: Ranks) -> list[Batch]:
        """This rank's micro-batches of an optimizer step on some of the episodes."""
        groups = micro_batches(part, self.episodes.lengths_n, shape, ranks.count)
        batches = []
        for group in groups[ranks.index :: ranks.count]:
            batch, places = collate(self.episodes, group, shape, filler=int(part[0])), self.episodes.places(group)
            extras = {name: torch.from_numpy(values_n[places]) for name, values_n in self.tokens.items()}
            counts = dict.fromkeys(TERMS, float(extras["weight"].sum()))
            batches.append(replace(batch, counts=counts, extras=extras))
        return batches
