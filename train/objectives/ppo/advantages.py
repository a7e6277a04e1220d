"""From rewards to what each token is worth: pure functions over the episodes of one rollout.

Shape suffixes: e episodes, n tokens of all answers, one episode after another; starts: where each episode begins in n.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from train.config_ppo import PpoConfig

Floats = NDArray[np.float64]
Starts = NDArray[np.int64]  # [e + 1]
LEAST_DEVIATION = 1e-8


def kl_of_tokens(log_p_n: Floats, reference_n: Floats, estimator: str) -> Floats:
    """Estimates of KL(policy || reference) from tokens that the policy drew (http://joschu.net/blog/kl-approx.html).

    k1: log p - log q. k3: q/p - 1 - log(q/p), which is never negative.
    """
    if estimator == "k1":
        return log_p_n - reference_n
    log_ratio_n = reference_n - log_p_n
    return np.exp(log_ratio_n) - 1 - log_ratio_n


def token_rewards(reward_e: Floats, penalty_n: Floats, starts: Starts) -> Floats:
    """-penalty at each token, and the episode's reward at its last one."""
    rewards_n = -penalty_n
    rewards_n[starts[1:] - 1] += reward_e
    return rewards_n


def gae(rewards_n: Floats, values_n: Floats, starts: Starts, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimation (arXiv:1506.02438, equation 16), nothing being worth anything after the end.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1}.
    """
    advantages_n = np.zeros_like(rewards_n)
    for start, end in pairwise(starts):
        after = value_after = 0.0
        for t in range(end - 1, start - 1, -1):
            delta = rewards_n[t] + gamma * value_after - values_n[t]
            after = advantages_n[t] = delta + gamma * lam * after
            value_after = values_n[t]
    return advantages_n


def rloo(return_e: Floats, group: int) -> Floats:
    """Each answer against the mean of the other answers to its prompt (arXiv:2402.14740, equation 6)."""
    return_pg = return_e.reshape(-1, group)
    others_pg = (return_pg.sum(1, keepdims=True) - return_pg) / (group - 1)
    advantage_e: Floats = (return_pg - others_pg).ravel()
    return advantage_e


def grpo(return_e: Floats, group: int) -> Floats:
    """Each answer in deviations from the mean of all answers to its prompt (arXiv:2402.03300, section 4.1.2)."""
    return_pg = return_e.reshape(-1, group)
    centred_pg = return_pg - return_pg.mean(1, keepdims=True)
    advantage_e: Floats = (centred_pg / (return_pg.std(1, keepdims=True) + 1e-4)).ravel()
    return advantage_e


def whiten(values_n: Floats) -> Floats:
    """With mean 0 and deviation 1."""
    white_n: Floats = (values_n - values_n.mean()) / max(float(values_n.std()), LEAST_DEVIATION)
    return white_n


def per_token(values_e: Floats, starts: Starts) -> Floats:
    """The episode's value at each of its tokens."""
    return np.repeat(values_e, np.diff(starts))


def per_episode(values_n: Floats, starts: Starts) -> Floats:
    """Sum over the tokens of each episode."""
    sums_e: Floats = np.add.reduceat(values_n, starts[:-1])
    return sums_e


def adapt_kl_coefficient(weight: float, kl_e: Floats, config: PpoConfig) -> float:
    """The weight of the distance after a rollout: moved towards what keeps it at a target, where there is one.

    As arXiv:1909.08593, section 2.2, which moves it by K_beta = 0.1 times the error in each update; but by answers over
    horizon times the error, like the code published with it (`AdaptiveKLController`, horizon 10,000, in
    github.com/openai/lm-human-preferences, lm_human_preferences/train_policy.py).
    """
    if config.kl_target is None:
        return weight
    error = min(max(float(kl_e.mean()) / config.kl_target - 1, -0.2), 0.2)
    return weight * (1 + error * len(kl_e) / config.kl_horizon)


def compute_advantages(
    reward_e: Floats, penalty_n: Floats, values_n: Floats, starts: Starts, config: PpoConfig
) -> tuple[Floats, Floats]:
    """(what each token is worth beyond what was expected, what its value should have been).

    Only gae is whitened: a mean over tokens would give answers that do not differ from each other something to learn.
    """
    if config.advantage == "gae":
        advantage_n = gae(token_rewards(reward_e, penalty_n, starts), values_n, starts, config.gamma, config.gae_lambda)
        return (whiten(advantage_n) if config.whiten else advantage_n), advantage_n + values_n
    compare = rloo if config.advantage == "rloo" else grpo
    return_e = reward_e - per_episode(penalty_n, starts)
    return per_token(compare(return_e, config.samples_per_prompt), starts), np.zeros_like(values_n)
