"""Proximal policy optimisation: phases -> prompts -> rollout -> reward -> scoring -> experience -> loss,
tied together in objective."""

from __future__ import annotations

from train.objectives.ppo.objective import PPO

__all__ = ["PPO"]
