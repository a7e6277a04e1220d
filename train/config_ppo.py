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
    """One component of the reward, which is their weighted sum.

    Args:
        kind: model (a sequence classifier's logit, or a reward model's output), repetition (share of repeated token
            triples), length (tokens of the response), unfinished (1 if the response does not end by itself), task (a
            metric of `ppo.task`).
        weight: Negative for a penalty.
        path: The classifier's or reward model's folder or hub name.
        label: The class whose logit counts; not needed if the classifier has one output.
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
    """Proximal policy optimisation (arXiv:1707.06347) of responses to prompts.

    Args:
        reward: The components of the reward, as a list of {kind, weight, path, label, metric, name}. kind is model (a
            sequence classifier's logit, or a reward model's output), repetition (share of repeated token triples),
            length (tokens), unfinished (1 if a response does not end by itself) or task (a metric of ppo.task); a
            negative weight makes a penalty.
        task: An evaluation task (python -m eval --help, or a YAML file) whose prompts are used, without examples,
            instead of the rows' own; it must be able to read the rows.
        prompt_tokens: The first tokens of a corpus text that are its prompt; other rows have a prompt of their own, and
            need no answer.
        response_tokens: The longest response.
        rollout_prompts: Prompts of a rollout, over all ranks together; the policy is updated after each rollout.
        samples_per_prompt: Responses to each of them; rloo and grpo need two or more.
        epochs: Passes over the responses of a rollout.
        minibatches: Optimizer steps of a pass, each on its share of the responses.
        advantage: gae (a value for each token, arXiv:1506.02438), or a comparison of the responses to one prompt: rloo
            (arXiv:2402.14740), grpo (arXiv:2402.03300).
        value_model: A folder or hub name of a decoder with the policy's tokenizer (a reward model, the model itself)
            that learns the values, with all its weights; by default a head on the policy's hidden states learns them.
        temperature: Of the responses in training; responses to held-out prompts are greedy.
        top_k: Sample only from this many most probable tokens; 0 from all.
        top_p: Of these, only from the fewest that have this probability together. Probabilities, ratios and KL are
            those of the whole distribution nevertheless.
        gamma: Discount of the reward of later tokens.
        gae_lambda: Between one step (0) and the whole response (1).
        whiten: Normalise the advantages of gae to mean 0 and standard deviation 1 over the tokens of a rollout; rloo
            and grpo are not changed, since they compare responses.
        clip: The ratio of new to old probability counts only within this distance from 1.
        value_clip: The change of a value counts only up to this size; 0 never clips.
        value_weight: Weight of the value loss.
        entropy_weight: Weight of a bonus for entropy.
        kl_weight: Weight of the KL from the reference model (the KL coefficient); 0 for none.
        kl_target: Adapt kl_weight after each rollout towards this KL in nats per response (arXiv:1909.08593,
            section 2.2).
        kl_horizon: How slowly, in responses: a rollout changes the weight by its relative error, a fifth at most, times
            its responses over this number. 10,000 is that of the code published with the paper.
        kl_in: Whether the KL lowers the reward of each token, or is a term of the loss.
        kl_estimator: Of the KL in the reward: k1 (unbiased), or k3 (never negative;
            http://joschu.net/blog/kl-approx.html). In the loss it is always k3: there the gradient of k1 is 0 on
            average.
        level: Whether all tokens have the same weight, or all responses.
        supervised_weight: Weight of the loss on the rows' own answers, added in every step (PTX, arXiv:2203.02155); 0
            for none. The steps between rollouts have this weight too, or 1 if it is 0.
        supervised_every: After this many rollouts, train supervised_steps steps on the rows' own answers; 0 never.
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
