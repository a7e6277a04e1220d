"""Advantages of a rollout's tokens from its rewards: pure functions.

Shape suffixes: r responses, n tokens of all responses, one response after another; p prompts, g responses of a prompt.
starts: where each response begins in n.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from train.config_ppo import PpoConfig

Floats = NDArray[np.float64]
Starts = NDArray[np.int64]  # [r + 1]
LEAST_DEVIATION = 1e-8


def token_kl(log_p_n: Floats, reference_n: Floats, estimator: str) -> Floats:
    """Estimates of KL(policy || reference) from tokens sampled by the policy (http://joschu.net/blog/kl-approx.html).

    k1: log p - log q. k3: q/p - 1 - log(q/p), which is never negative.
    """
    if estimator == "k1":
        return log_p_n - reference_n
    log_ratio_n = reference_n - log_p_n
    return np.exp(log_ratio_n) - 1 - log_ratio_n


def token_rewards(reward_r: Floats, penalty_n: Floats, starts: Starts) -> Floats:
    """-penalty at each token, and the response's reward at its last one."""
    rewards_n = -penalty_n
    rewards_n[starts[1:] - 1] += reward_r
    return rewards_n


def gae(rewards_n: Floats, values_n: Floats, starts: Starts, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimation (arXiv:1506.02438, equation 16). The value after the last token is 0.

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


def rloo(return_r: Floats, group: int) -> Floats:
    """Each return minus the mean of the other responses to the same prompt (arXiv:2402.14740, equation 6)."""
    return_pg = return_r.reshape(-1, group)
    others_pg = (return_pg.sum(1, keepdims=True) - return_pg) / (group - 1)
    advantage_r: Floats = (return_pg - others_pg).ravel()
    return advantage_r


def grpo(return_r: Floats, group: int) -> Floats:
    """Each return, normalised over the responses to the same prompt (arXiv:2402.03300, section 4.1.2)."""
    return_pg = return_r.reshape(-1, group)
    centred_pg = return_pg - return_pg.mean(1, keepdims=True)
    advantage_r: Floats = (centred_pg / (return_pg.std(1, keepdims=True) + 1e-4)).ravel()
    return advantage_r


def whiten(values_n: Floats) -> Floats:
    """`values_n` with mean 0 and standard deviation 1."""
    white_n: Floats = (values_n - values_n.mean()) / max(float(values_n.std()), LEAST_DEVIATION)
    return white_n


def per_token(values_r: Floats, starts: Starts) -> Floats:
    """Each response's value, repeated for its tokens."""
    return np.repeat(values_r, np.diff(starts))


def per_response(values_n: Floats, starts: Starts) -> Floats:
    """Sum over the tokens of each response."""
    sums_r: Floats = np.add.reduceat(values_n, starts[:-1])
    return sums_r


def adapt_kl_coefficient(weight: float, kl_r: Floats, config: PpoConfig) -> float:
    """The KL coefficient after a rollout: adapted so that the KL approaches `kl_target`, if there is one.

    As in arXiv:1909.08593, section 2.2. There the factor is 1 + 0.1 x error; here it is 1 + responses / kl_horizon x
    error, as in the code published with it (`AdaptiveKLController`, horizon 10,000, in
    github.com/openai/lm-human-preferences, lm_human_preferences/train_policy.py).
    """
    if config.kl_target is None:
        return weight
    error = min(max(float(kl_r.mean()) / config.kl_target - 1, -0.2), 0.2)
    return weight * (1 + error * len(kl_r) / config.kl_horizon)


def compute_advantages(
    reward_r: Floats, penalty_n: Floats, values_n: Floats, starts: Starts, config: PpoConfig
) -> tuple[Floats, Floats]:
    """(advantages, targets of the values).

    Only gae is whitened: subtracting a mean over tokens would give equal responses advantages other than 0.
    """
    if config.advantage == "gae":
        advantage_n = gae(token_rewards(reward_r, penalty_n, starts), values_n, starts, config.gamma, config.gae_lambda)
        return (whiten(advantage_n) if config.whiten else advantage_n), advantage_n + values_n
    compare = rloo if config.advantage == "rloo" else grpo
    return_r = reward_r - per_response(penalty_n, starts)
    return per_token(compare(return_r, config.samples_per_prompt), starts), np.zeros_like(values_n)
