"""What a rollout asks of the model: answers, and how probable they are under it and under the reference.

Shape suffix: n tokens of all answers.
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
from train.objectives.ppo.trajectories import Episodes
from train.protocols import Batch, Ranks
from zerotune.models import loss_head
from zerotune.models.token_statistics import Statistics, token_statistics

Floats = NDArray[np.float64]
NAMES = ("log_p", "entropy", "value", "reference")


class Scoring:
    """Scores the tokens of answers, on packed sequences shared out over ranks.

    reference: a frozen copy of the model as it was; None where that is the model with its adapter switched off.
    """

    def __init__(self, shape: Shape, config: PpoConfig, ranks: Ranks) -> None:
        self.shape, self.config, self.ranks = shape, config, ranks
        self.reference: nn.Module | None = None

    def keep_reference(self, model: nn.Module) -> None:
        """Take a copy of the model for the reference."""
        self.reference = model.requires_grad_(False).eval().to(self.ranks.device)

    @torch.no_grad()
    def tokens(self, model: nn.Module, episodes: Episodes) -> dict[str, Floats]:
        """log_p, entropy and value of every token of the answers, and log_p under the reference: on every rank."""
        found = np.zeros((len(NAMES), int(episodes.starts[-1])))
        groups = micro_batches(np.arange(len(episodes)), episodes.lengths_n, self.shape, self.ranks.count)
        own = groups[self.ranks.index :: self.ranks.count]
        batches = [(episodes.places(group), collate(episodes, group, self.shape, filler=0)) for group in own]
        for places, batch in batches:
            scores = self.statistics(model, batch.to(self.ranks.device))
            found[:3, places] = np.stack([x.double().cpu().numpy() for x in scores])
        with self._as_reference(model) as reference:  # once: a sharded copy is gathered for it
            for places, batch in batches:
                scores = self.statistics(reference, batch.to(self.ranks.device), values=False)
                found[3, places] = scores.log_p_n.double().cpu().numpy()
        joined = np.array(self.ranks.sum(found.ravel().tolist())).reshape(found.shape)
        return dict(zip(NAMES, joined, strict=True))

    def statistics(self, model: nn.Module, batch: Batch, values: bool = True) -> Statistics:
        """Of the batch's targets, with gradients where the loss asks for them. values: False leaves them 0."""
        entropy = self.config.entropy_weight != 0
        return token_statistics(model, batch.inputs, batch.targets, self.config.temperature, entropy, values)

    @contextlib.contextmanager
    def _as_reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as it was before training."""
        if self.reference is not None:
            with self.ranks.whole_copy(self.reference):
                yield self.reference
            return
        adapted: Any = loss_head.unwrapped(model)
        with adapted.disable_adapter():
            yield model


def drop_nothing(model: nn.Module) -> None:
    """No dropout: probabilities before and after an update are compared.

    Rates stand in layers, or as numbers in the modules of a family, some of which read them from the configuration.
    """
    modules = list(model.modules())
    configs = [module.config for module in modules if isinstance(module, PreTrainedModel)]
    for owner in (*modules, *configs):
        if isinstance(owner, _DropoutNd):
            owner.p = 0.0
        for name in [name for name, value in vars(owner).items() if isinstance(value, float) and "drop" in name]:
            setattr(owner, name, 0.0)
