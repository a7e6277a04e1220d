"""The recipe's section `ppo`: the reward, and how the policy learns from it.

Like train/config.py, this file imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zerotune.common.schema import Share


@dataclass(frozen=True)
class RewardConfig:
    """One component of the reward.

    Args:
        kind: model (a sequence classifier's logit, or a reward model's output), repetition (share of repeated token
            trigrams), length (tokens of the response), unfinished (1 if the response is cut off at response_tokens),
            task (a metric of ppo.task).
        weight: Weight in the sum; negative for a penalty.
        path: Folder or hub name of the classifier or reward model.
        label: The class whose logit is used; not needed if the model has one output.
        metric: A metric of the task; by default its first one.
        name: Name in metrics and reports; by default the kind.
    """

    kind: Literal["model", "repetition", "length", "unfinished", "task"]
    weight: float = 1.0
    path: str = ""
    label: str = ""
    metric: str = ""
    name: str = ""


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation (arXiv:1707.06347) of responses to prompts.

    Args:
        reward: The components of the reward, a list of {kind, weight, path, label, metric, name}; the reward is their
            weighted sum. kind is model (a sequence classifier's logit, or a reward model's output), repetition (share
            of repeated token trigrams), length (tokens of the response), unfinished (1 if the response is cut off at
            response_tokens) or task (a metric of ppo.task). A negative weight makes a penalty.
        task: An evaluation task (python -m eval --help lists them, or a YAML file) that makes the prompts from the
            rows, without examples, instead of their format.
        prompt_tokens: Length of the prompt taken from the start of a corpus text. Rows of other formats contain their
            prompt; they need no answer.
        response_tokens: Longest response, in tokens.
        rollout_prompts: Prompts per rollout, over all ranks together. The policy is updated after each rollout.
        samples_per_prompt: Responses per prompt; rloo and grpo need two or more.
        epochs: Passes over the responses of a rollout.
        minibatches: Optimizer steps per pass, each on a part of the responses.
        advantage: gae (with a value for each token, arXiv:1506.02438), or a comparison of the responses to one prompt:
            rloo (arXiv:2402.14740), grpo (arXiv:2402.03300).
        value_model: Folder or hub name of a decoder with the policy's tokenizer, for example the reward model; all its
            weights are trained to predict the values. By default a head on the policy's hidden states predicts them.
        temperature: Sampling temperature of training; responses to held-out prompts are greedy.
        top_k: Sample only from this many most probable tokens; 0: from all.
        top_p: Sample only from the smallest set of tokens with this total probability. Ratios and KL still use the
            whole distribution.
        gamma: Discount factor.
        gae_lambda: Lambda of gae, from one-step estimates (0) to whole returns (1).
        whiten: Normalise the advantages of gae to mean 0 and standard deviation 1 over the tokens of a rollout. rloo
            and grpo are not normalised.
        clip: Clip range of the probability ratio, around 1.
        value_clip: Clip range of the change of a value; 0 disables it.
        value_weight: Coefficient of the value loss.
        entropy_weight: Coefficient of the entropy bonus.
        kl_weight: Coefficient of the KL from the reference model; 0 disables it.
        kl_target: Adapt kl_weight after each rollout to reach this KL, in nats per response (arXiv:1909.08593,
            section 2.2); null: kl_weight is constant.
        kl_horizon: Slowness of that adaptation: each rollout multiplies kl_weight by 1 + error x responses /
            kl_horizon, where error is the relative error of the KL, at most 0.2. The paper's code has 10,000.
        kl_in: Subtract the KL from the reward of each token, or add it to the loss.
        kl_estimator: Estimator of the KL in the reward: k1 (unbiased) or k3 (never negative;
            http://joschu.net/blog/kl-approx.html). In the loss it is always k3, since the gradient of k1 is 0 on
            average.
        level: Average the loss over tokens, or over responses.
        supervised_weight: Weight of the supervised loss on the rows' own answers, added in every step (PTX,
            arXiv:2203.02155); 0 disables it. It also applies to the steps of supervised_every, whose weight is 1 if
            this is 0.
        supervised_every: After this many rollouts, train supervised_steps steps on the rows' own answers; 0 disables
            it.
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
