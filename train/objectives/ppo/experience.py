"""A scored rollout with its advantages, and the micro-batches of the steps that learn from it.

Shape suffixes: r responses, n tokens of all responses.
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
from train.objectives.ppo.trajectories import Trajectories
from train.protocols import Batch, Ranks

Floats = NDArray[np.float64]
TERMS = ("policy", "value", "kl", "entropy")  # of the loss, over tokens of responses


@dataclass(frozen=True)
class Experience:
    """tokens: for each token of the responses its log_p, entropy, reference (log_p under the reference model) and value
    at the time of the rollout, its advantage, the target of its value, and its weight in the loss.
    kl_r: KL of each response from the reference model, in nats.
    """

    trajectories: Trajectories
    tokens: Mapping[str, Floats]
    kl_r: Floats

    @classmethod
    def of(
        cls,
        trajectories: Trajectories,
        reward_r: Floats,
        scored: Mapping[str, Floats],
        config: PpoConfig,
        kl_weight: float,
    ) -> Experience:
        """From rewards, and from what `Scoring.tokens` returned."""
        starts = trajectories.starts
        kl_n = advantages.token_kl(scored["log_p"], scored["reference"], config.kl_estimator)
        kl_r = advantages.per_response(advantages.token_kl(scored["log_p"], scored["reference"], "k1"), starts)
        in_reward = kl_weight if config.kl_in == "reward" else 0.0
        advantage_n, target_n = advantages.compute_advantages(
            reward_r, in_reward * kl_n, scored["value"], starts, config
        )
        weight_n = np.ones_like(kl_n)
        if config.level == "sequence":
            weight_n = 1 / advantages.per_token(np.diff(starts).astype(np.float64), starts)
        tokens = {**scored, "advantage": advantage_n, "target": target_n, "weight": weight_n}
        return cls(trajectories, tokens, kl_r)

    def batches(self, part: NDArray[np.int64], shape: Shape, ranks: Ranks) -> list[Batch]:
        """This rank's micro-batches of an optimizer step on some of the trajectories."""
        rows = self.trajectories
        groups = micro_batches(part, rows.lengths_n, shape, ranks.count)
        batches = []
        for group in groups[ranks.index :: ranks.count]:
            batch, places = collate(rows, group, shape, filler=int(part[0])), rows.places(group)
            extras = {name: torch.from_numpy(values_n[places]) for name, values_n in self.tokens.items()}
            counts = dict.fromkeys(TERMS, float(extras["weight"].sum()))
            batches.append(replace(batch, counts=counts, extras=extras))
        return batches
