"""PPO's loss terms of one micro-batch, as weighted sums over tokens.

Shape suffix: n tokens of responses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from train.config_ppo import PpoConfig
from zerotune.models.token_statistics import Statistics


def losses(now: Statistics, then: Mapping[str, Tensor], config: PpoConfig, kl_weight: float) -> dict[str, Tensor]:
    """The terms, multiplied by their coefficients.

    policy: -min(ratio A, clip(ratio, 1 - c, 1 + c) A) (arXiv:1707.06347, equation 7).
    value: half the squared error; with value_clip, the larger one of the value and of the clipped value.
    kl: k3 of the policy from the reference model, if it is not part of the reward. entropy: minus the bonus.

    then: log_p, reference, value, advantage, target and weight of each token at the time of the rollout.
    """
    weight_n = then["weight"].float()
    advantage_n = then["advantage"].float()
    ratio_n = (now.log_p_n - then["log_p"].float()).exp()
    clipped_n = ratio_n.clamp(1 - config.clip, 1 + config.clip)
    found = {"policy": -(torch.minimum(ratio_n * advantage_n, clipped_n * advantage_n) * weight_n).sum()}
    if config.advantage == "gae":
        found["value"] = config.value_weight * (_value_errors(now.value_n, then, config.value_clip) * weight_n).sum()
    if config.kl_in == "loss":
        log_ratio_n = then["reference"].float() - now.log_p_n
        found["kl"] = kl_weight * ((log_ratio_n.exp() - 1 - log_ratio_n) * weight_n).sum()
    if config.entropy_weight:
        found["entropy"] = -config.entropy_weight * (now.entropy_n * weight_n).sum()
    return found


def _value_errors(value_n: Tensor, then: Mapping[str, Tensor], clip: float) -> Tensor:
    target_n, old_n = then["target"].float(), then["value"].float()
    error_n = (value_n - target_n).square()
    if clip:
        near_n = old_n + (value_n - old_n).clamp(-clip, clip)
        error_n = torch.maximum(error_n, (near_n - target_n).square())
    return 0.5 * error_n


def clip_share(now: Statistics, then: Mapping[str, Tensor], clip: float) -> Tensor:
    """Number of tokens whose ratio is outside the clip range."""
    ratio_n = (now.log_p_n.detach() - then["log_p"].float()).exp()
    return ((ratio_n - 1).abs() > clip).sum()
