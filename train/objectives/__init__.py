"""What is learned, by name."""

from __future__ import annotations

from collections.abc import Mapping

from train.objectives.causal_lm import CausalLM
from train.objectives.ppo import PPO
from train.objectives.reward_model import RewardModel
from train.objectives.sequence_classification import Regression, SequenceClassification
from train.objectives.token_classification import TokenClassification
from train.protocols import Objective

OBJECTIVES: Mapping[str, type[Objective]] = {
    "causal_lm": CausalLM,
    "token_classification": TokenClassification,
    "sequence_classification": SequenceClassification,
    "regression": Regression,
    "reward_model": RewardModel,
    "ppo": PPO,
}
