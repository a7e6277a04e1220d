"""Warnings about a policy that collapses or exploits the reward, each given once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

MOST_KL = 1.0  # nats per token, on average over a response
LEAST_ENTROPY = 0.1  # of the first rollout's
MORE_REPETITION = 0.15  # than in the first rollout
COMPARED = ("rollout/reward", "rollout/entropy", "rollout/repetition")  # with those of the first rollout


class Health:
    """Compares each rollout with the first. logs: whether this rank logs the warnings."""

    def __init__(self, logs: bool) -> None:
        self.logs = logs
        self.first: Mapping[str, float] = {}
        self.reported: set[str] = set()

    def state(self) -> dict[str, float]:
        """The metrics of the first rollout, and the warnings given so far."""
        first = {f"first {name}": value for name, value in self.first.items()}
        return first | {f"told {name}": 1.0 for name in sorted(self.reported)}

    def resume(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        self.first = {name: state[f"first {name}"] for name in COMPARED if f"first {name}" in state}
        self.reported = {name.removeprefix("told ") for name in state if name.startswith("told ")}

    def check(self, found: Mapping[str, float]) -> None:
        """Warn about the metrics of a rollout."""
        self.first = first = self.first or {name: found[name] for name in COMPARED}
        self._warn(
            "empty", found.get("rollout/empty", 0.0) >= 1,
            "every response of a rollout is empty, so there is nothing to learn: check the prompts (samples/), "
            "data.chat_template, and the model's end tokens (generation_config.json)",
        )  # fmt: skip
        more_reward = found["rollout/reward"] > first["rollout/reward"]
        kl_per_token = found["rollout/kl"] / found["rollout/response_tokens"]
        self._warn(
            "kl", abs(kl_per_token) > MOST_KL,
            f"KL from the reference is {found['rollout/kl']:.0f} nats per response, {kl_per_token:.1f} per token: "
            "raise ppo.kl_weight or set ppo.kl_target",
        )  # fmt: skip
        self._warn(
            "entropy", found["rollout/entropy"] < LEAST_ENTROPY * first["rollout/entropy"],
            "the entropy has fallen below a tenth of the first rollout's: raise ppo.kl_weight or ppo.entropy_weight, "
            "or lower optim.learning_rate",
        )  # fmt: skip
        self._warn(
            "repetition",
            more_reward and found["rollout/repetition"] > first["rollout/repetition"] + MORE_REPETITION,
            "reward and repetition rise together: add {kind: repetition, weight: -1} to ppo.reward",
        )  # fmt: skip

    def _warn(self, name: str, is_so: bool, text: str) -> None:
        if is_so and name not in self.reported:
            self.reported.add(name)
            if self.logs:
                log.warning("PPO: %s", text)
