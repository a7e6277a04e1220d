"""Known signs that a policy is going wrong, told once each."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

FAR = 1.0  # nats of a token from the reference, on average over an answer
COLLAPSED = 0.1  # of the entropy at the start
MORE_REPEATED = 0.15  # share of word groups, above the start
COMPARED = ("rollout/reward", "rollout/entropy", "rollout/repetition")  # with those of the first rollout


class Signs:
    """Compares each rollout with the first."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.first: Mapping[str, float] = {}
        self.told: set[str] = set()

    def state(self) -> dict[str, float]:
        """The first rollout, and what was told."""
        first = {f"first {name}": value for name, value in self.first.items()}
        return first | {f"told {name}": 1.0 for name in sorted(self.told)}

    def resume(self, state: Mapping[str, float]) -> None:
        """Take up what `state` gave."""
        self.first = {name: state[f"first {name}"] for name in COMPARED if f"first {name}" in state}
        self.told = {name.removeprefix("told ") for name in state if name.startswith("told ")}

    def look(self, found: Mapping[str, float]) -> None:
        """Warn of what has become of the policy."""
        self.first = first = self.first or {name: found[name] for name in COMPARED}
        self._warn(
            "empty", found.get("rollout/empty", 0.0) >= 1,
            "every response of a rollout is empty, so there is nothing to learn: check the prompts (samples/), "
            "data.chat_template, and the model's end tokens (generation_config.json)",
        )  # fmt: skip
        more_reward = found["rollout/reward"] > first["rollout/reward"]
        kl_per_token = found["rollout/kl"] / found["rollout/response_tokens"]
        self._warn(
            "kl", abs(kl_per_token) > FAR,
            f"KL from the reference is {found['rollout/kl']:.0f} nats per response, {kl_per_token:.1f} per token: "
            "raise ppo.kl_weight or set ppo.kl_target",
        )  # fmt: skip
        self._warn(
            "entropy", found["rollout/entropy"] < COLLAPSED * first["rollout/entropy"],
            "the entropy has fallen below a tenth of the first rollout's: raise ppo.kl_weight or ppo.entropy_weight, "
            "or lower optim.learning_rate",
        )  # fmt: skip
        self._warn(
            "repetition", more_reward and found["rollout/repetition"] > first["rollout/repetition"] + MORE_REPEATED,
            "reward and repetition rise together: add {kind: repetition, weight: -1} to ppo.reward",
        )  # fmt: skip

    def _warn(self, name: str, is_so: bool, text: str) -> None:
        if is_so and name not in self.told:
            self.told.add(name)
            if self.speaks:
                log.warning("PPO: %s", text)
