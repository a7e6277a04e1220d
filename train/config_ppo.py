"""The recipe's section `ppo`: what is rewarded, and how the policy learns from it.

Like train/config.py, this file imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zerotune.common.schema import Share


@dataclass(frozen=True)
class RewardConfig:
    """One part of the reward; their weighted sum is what the policy learns to get.

    Args:
        kind: model (a sequence classifier's logit, or a reward model's output), repetition (share of repeated word
            triples), length (tokens of the answer), unfinished (1 where the answer does not end by itself), task (a
            metric of `ppo.task`).
        weight: Negative for a penalty.
        path: The classifier's or reward model's folder or hub name.
        label: The class whose logit counts; not needed where the classifier has one output.
        metric: The task's; its first one by default.
        name: In metrics and reports; by default its kind.
    """

    kind: Literal["model", "repetition", "length", "unfinished", "task"]
    weight: float = 1.0
    path: str = ""
    label: str = ""
    metric: str = ""
    name: str = ""


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation (arXiv:1707.06347) of answers to prompts.

    Args:
        reward: The parts of the reward, as a list of {kind, weight, path, label, metric, name}. kind is model (a
            sequence classifier's logit, or a reward model's output), repetition (share of repeated word triples),
            length (tokens), unfinished (1 where an answer does not end by itself) or task (a metric of ppo.task); a
            negative weight makes a penalty.
        task: An evaluation task (python -m eval --help, or a YAML file) whose prompts are asked, without examples, in
            place of the rows' own; the rows must be such as it reads.
        prompt_tokens: First tokens of a corpus text that are its prompt; other rows ask what they ask, and need no
            answer.
        response_tokens: Longest answer.
        rollout_prompts: Prompts answered before the policy is updated, over all ranks together.
        samples_per_prompt: Answers to each of them; rloo and grpo need two or more.
        epochs: Passes over the answers of a rollout.
        minibatches: Optimizer steps of a pass, each on its share of the answers.
        advantage: gae (a value for each token, arXiv:1506.02438), or the answers to one prompt compared with each
            other: rloo (arXiv:2402.14740), grpo (arXiv:2402.03300).
        value_model: A folder or hub name of a decoder with the policy's tokenizer (a reward model, the model itself)
            that learns the values, all of it trained; by default they are a head on the policy's own hidden states.
        temperature: Of the answers while training; held-out prompts are answered greedily.
        top_k: Draw only from the so many most probable tokens; 0 from all.
        top_p: And of these from the fewest that have this probability together. Probabilities, ratios and distances are
            those of the whole distribution all the same.
        gamma: Discount of the reward of later tokens.
        gae_lambda: Between one step (0) and the whole answer (1).
        whiten: Bring the advantages of gae to mean 0 and deviation 1 over the tokens of a rollout; rloo and grpo, which
            compare answers by themselves, are left as they are.
        clip: Furthest useful ratio of new to old probability from 1.
        value_clip: Furthest useful move of a value; 0 never clips.
        value_weight: Of the value loss.
        entropy_weight: Of a bonus for entropy.
        kl_weight: Of the distance from the start; 0 leaves it free.
        kl_target: With it, kl_weight is adapted towards this distance in nats of an answer after each rollout
            (arXiv:1909.08593, section 2.2).
        kl_horizon: How slowly, in answers: a rollout moves the weight by its relative error, a fifth at most, times its
            answers over this number. 10,000 is that of the code published with the paper.
        kl_in: Whether the distance lowers the reward of each token, or stands in the loss.
        kl_estimator: Of the distance in the reward: k1 (unbiased), or k3 (never negative;
            http://joschu.net/blog/kl-approx.html). In the loss it is k3 whatever is given: there k1 has a gradient of 0
            on average.
        level: Whether all tokens count the same, or all answers.
        supervised_weight: Of the rows' own answers, learned beside in every step (PTX, arXiv:2203.02155); 0 not.
            The loss of the steps between rollouts has this weight too, or 1 where it is 0.
        supervised_every: After so many rollouts come supervised_steps steps on the rows' own answers; 0 never.
        supervised_steps: See supervised_every.
    """

    reward: list[RewardConfig] = field(default_factory=list)
    task: str = ""
    prompt_tokens: PositiveInt = 8
    response_tokens: PositiveInt = 48
    rollout_prompts: PositiveInt = 64
    samples_per_prompt: PositiveInt = 1
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 1
    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    value_model: str = ""
    temperature: PositiveFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    whiten: bool = True
    clip: PositiveFloat = 0.2
    value_clip: NonNegativeFloat = 0.2
    value_weight: NonNegativeFloat = 0.1
    entropy_weight: NonNegativeFloat = 0.0
    kl_weight: NonNegativeFloat = 0.05
    kl_target: PositiveFloat | None = None
    kl_horizon: PositiveInt = 10_000
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k3"] = "k1"
    level: Literal["token", "sequence"] = "token"
    supervised_weight: NonNegativeFloat = 0.0
    supervised_every: NonNegativeInt = 0
    supervised_steps: NonNegativeInt = 0

    @property
    def models(self) -> dict[str, str]:
        """Key -> folder or hub name of the models beside the policy."""
        paths = {f"ppo.reward[{index}].path": part.path for index, part in enumerate(self.reward)}
        return {key: path for key, path in {**paths, "ppo.value_model": self.value_model}.items() if path}
