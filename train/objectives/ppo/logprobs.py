"""Log-probabilities, entropies and values of sampled tokens, under the policy and the reference model.

Shape suffix: n tokens of all responses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape, collate, micro_batches
from train.objectives.ppo.trajectories import Trajectories
from train.protocols import Batch, Ranks
from zerotune.models import loss_head
from zerotune.models.token_statistics import Statistics, token_statistics

Floats = NDArray[np.float64]
NAMES = ("log_p", "entropy", "value", "reference")


class Scoring:
    """Scores the tokens of responses; each rank scores a share.

    reference: a frozen copy of the model before training; None if that is the model with its adapter switched off.
    """

    def __init__(self, shape: Shape, config: PpoConfig, ranks: Ranks) -> None:
        self.shape, self.config, self.ranks = shape, config, ranks
        self.reference: nn.Module | None = None

    def keep_reference(self, model: nn.Module) -> None:
        """Use `model` as the reference model."""
        self.reference = model.requires_grad_(False).eval().to(self.ranks.device)

    @torch.no_grad()
    def tokens(self, model: nn.Module, trajectories: Trajectories) -> dict[str, Floats]:
        """By NAMES: log_p, entropy and value of every token of the responses, and log_p under the reference model. On
        every rank; a collective.
        """
        found = np.zeros((len(NAMES), int(trajectories.starts[-1])))
        groups = micro_batches(np.arange(len(trajectories)), trajectories.lengths_n, self.shape, self.ranks.count)
        own = groups[self.ranks.index :: self.ranks.count]
        batches = [(trajectories.places(group), collate(trajectories, group, self.shape, filler=0)) for group in own]
        for places, batch in batches:
            scores = self.statistics(model, batch.to(self.ranks.device))
            found[:3, places] = np.stack([x.double().cpu().numpy() for x in scores])
        with self._reference_of(model) as reference:  # once: a sharded copy is gathered for it
            for places, batch in batches:
                scores = self.statistics(reference, batch.to(self.ranks.device), values=False)
                found[3, places] = scores.log_p_n.double().cpu().numpy()
        joined = np.array(self.ranks.sum(found.ravel().tolist())).reshape(found.shape)
        return dict(zip(NAMES, joined, strict=True))

    def statistics(self, model: nn.Module, batch: Batch, values: bool = True) -> Statistics:
        """Statistics of the batch's targets. values: False leaves the values 0."""
        entropy = self.config.entropy_weight != 0
        return token_statistics(model, batch.inputs, batch.targets, self.config.temperature, entropy, values)

    @contextlib.contextmanager
    def _reference_of(self, model: nn.Module) -> Iterator[nn.Module]:
        if self.reference is not None:
            with self.ranks.whole_copy(self.reference):
                yield self.reference
            return
        adapted: Any = loss_head.unwrapped(model)
        with adapted.disable_adapter():
            yield model


def disable_dropout(model: nn.Module) -> None:
    """Set all dropout rates to 0: PPO compares probabilities before and after an update.

    Rates are in dropout layers, or numbers in modules; some modules read them from the configuration.
    """
    modules = list(model.modules())
    configs = [module.config for module in modules if isinstance(module, PreTrainedModel)]
    for owner in (*modules, *configs):
        if isinstance(owner, _DropoutNd):
            owner.p = 0.0
        for name in [name for name, value in vars(owner).items() if isinstance(value, float) and "drop" in name]:
            setattr(owner, name, 0.0)
