"""Checks of the recipe's section `ppo`. Like train/recipe_checks.py, this file imports nothing heavy."""

from __future__ import annotations

from train.config import Config
from train.config_ppo import PpoConfig
from train.registry import Problems

READ_BY = {"path": "model", "label": "model", "metric": "task"}  # key of a component -> the kind that reads it


def _reward_problems(ppo: PpoConfig) -> Problems:
    if not ppo.reward:
        yield (
            "ppo.reward",
            "is empty; add at least one component, for example [{kind: model, path: runs/imdb-sentiment/merged}]",
        )
    names = [part.name or part.kind for part in ppo.reward]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "ppo.reward", f"two components have the name {name}; give each its own"
    for index, part in enumerate(ppo.reward):
        key = f"ppo.reward[{index}]"
        if names[index] in ("deviation", "min", "max"):
            yield f"{key}.name", f"cannot be {part.name}: rollout/reward_{part.name} is a metric of the whole reward"
        if part.kind == "model" and not part.path:
            yield f"{key}.path", "is missing; give the folder or hub name of a classifier or reward model"
        for name, kind in READ_BY.items():
            if getattr(part, name) and part.kind != kind:
                yield f"{key}.{name}", f"applies only to kind {kind} (the kind is {part.kind})"
    if any(part.kind == "task" for part in ppo.reward) and not ppo.task:
        yield "ppo.reward", "kind task needs ppo.task; set it, for example to gsm8k_cot"


def _rollout_problems(ppo: PpoConfig) -> Problems:
    answers = ppo.rollout_prompts * ppo.samples_per_prompt
    of_a_rollout = f"{answers:,} responses of a rollout (ppo.rollout_prompts x ppo.samples_per_prompt)"
    if ppo.minibatches > answers:
        most = f"{ppo.minibatches:,} steps are more than the {of_a_rollout}; set at most {answers:,}"
        yield "ppo.minibatches", most
    if ppo.kl_target is not None and not ppo.kl_weight:
        yield "ppo.kl_target", "ppo.kl_weight is adapted by a factor, so 0 stays 0; set ppo.kl_weight above 0"
    if ppo.kl_target is not None and ppo.kl_horizon < answers:
        yield "ppo.kl_horizon", f"{ppo.kl_horizon:,} is less than the {of_a_rollout}; set at least {answers:,}"


def problems(config: Config) -> Problems:
    """(key, message) of all errors in `ppo`, and of other keys that PPO does not support."""
    ppo: PpoConfig = config.settings
    yield from _reward_problems(ppo)
    yield from _rollout_problems(ppo)
    if ppo.advantage != "gae" and ppo.samples_per_prompt < 2:
        yield "ppo.samples_per_prompt", f"{ppo.advantage} compares the responses to one prompt; set at least 2"
    if ppo.advantage != "gae" and ppo.value_model:
        yield "ppo.value_model", f"{ppo.advantage} learns no values; remove it, or set ppo.advantage: gae"
    if bool(ppo.supervised_every) != bool(ppo.supervised_steps):
        yield (
            "ppo.supervised_every",
            "ppo.supervised_every and ppo.supervised_steps belong together; set both, or neither",
        )
    if config.optim.spike_factor is not None:
        yield "optim.spike_factor", "PPO's loss rises and falls around 0; remove it"
    key, tuning = config.tuning.section
    if getattr(tuning, "dropout", 0):
        yield f"{key}.dropout", "PPO compares probabilities before and after an update; set it to 0"
    if getattr(tuning, "bias", "none") != "none":
        off = "PPO's reference is the model with its adapter switched off, which leaves trained biases on"
        yield f"{key}.bias", f"{off}; set it to none"
    weighted = [index for index, source in enumerate(config.data.train) if source.weight != 1]
    if weighted and not ppo.supervised_weight and not ppo.supervised_every:
        once = "PPO uses every prompt once per epoch; weights apply only to supervised steps"
        yield f"data.train[{weighted[0]}].weight", f"{once}; remove it, or set fraction"
    if config.data.streaming:
        yield "data.streaming", "PPO needs all prompts before the first step; set it to false"
