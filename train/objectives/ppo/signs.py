"""Known signs that a policy is going wrong, told once each."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

FAR = 50.0  # nats of an answer from the reference
COLLAPSED = 0.1  # of the entropy at the start
MORE_REPEATED = 0.15  # share of word groups, above the start


class Signs:
    """Compares each rollout with the first."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.first: Mapping[str, float] | None = None
        self.told: set[str] = set()

    def look(self, found: Mapping[str, float]) -> None:
        """Warn of what has become of the policy."""
        self.first = first = self.first or found
        more_reward = found["rollout/reward"] > first["rollout/reward"]
        self._warn(
            "kl", abs(found["rollout/kl"]) > FAR,
            f"answers are {found['rollout/kl']:.0f} nats from the reference: raise ppo.kl_weight or set ppo.kl_target",
        )  # fmt: skip
        self._warn(
            "entropy", found["rollout/entropy"] < COLLAPSED * first["rollout/entropy"],
            "the entropy has collapsed to a tenth: raise ppo.kl_weight or ppo.entropy_weight, or learn more slowly",
        )  # fmt: skip
        self._warn(
            "repetition", more_reward and found["rollout/repetition"] > first["rollout/repetition"] + MORE_REPEATED,
            "the reward rises together with repetition: add {kind: repetition, weight: -1} to ppo.reward",
        )  # fmt: skip

    def _warn(self, name: str, is_so: bool, text: str) -> None:
        if is_so and name not in self.told:
            self.told.add(name)
            if self.speaks:
                log.warning("PPO: %s", text)
