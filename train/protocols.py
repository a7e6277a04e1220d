"""The interfaces that the packages of `train` share. The axes (objective, tuning, parallelism) know only these.

Shape suffixes: b rows of a micro-batch, t positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from train.config import Config


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    inputs: keyword arguments of the model's forward; tensors and plain numbers.
    targets: target of each position; for token objectives [b, t] with -100 for none.
    counts: for each term of the loss, the number of items that this batch adds to its global count (0 for a filler
        batch, which gives a rank without rows something to compute).
    tokens: tokens without padding. positions: tokens with padding.
    row_ids: `file:line` of its rows, for messages.
    extras: further tensors that the loss needs.
    """

    inputs: Mapping[str, Any]
    targets: Tensor
    counts: Mapping[str, float]
    tokens: int
    positions: int
    row_ids: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in self.inputs.items()}
        extras = {name: tensor.to(device, non_blocking=True) for name, tensor in self.extras.items()}
        return replace(self, inputs=moved, targets=self.targets.to(device, non_blocking=True), extras=extras)


@dataclass(frozen=True)
class Plan:
    """The size of a run, known before its first step.

    total_steps: for a stream, the maximum until the end is known.
    epoch_ends: the number of steps after each epoch; empty while unknown (streaming).
    last_epoch_share: the part of the last epoch that the run trains on.
    attention_length: attended positions per token, on average. head_share: share of the tokens for which the output
        head is computed. Both are only for the model FLOPs utilisation.
    lines: a summary for the user, ready to print.
    """

    total_steps: int
    epoch_ends: tuple[int, ...]
    tokens_per_step: float
    rows_per_step: float
    padding_share: float
    attention_length: float
    head_share: float
    lines: tuple[str, ...]
    last_epoch_share: float = 1.0

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps; 0.0 while epochs are unknown."""
        start = 0
        for index, end in enumerate(self.epoch_ends):
            if step <= end:
                share = self.last_epoch_share if end == self.epoch_ends[-1] else 1.0
                return index + share * (step - start) / max(end - start, 1)
            start = end
        return len(self.epoch_ends) - 1 + self.last_epoch_share if self.epoch_ends else 0.0


@dataclass(frozen=True)
class Sample:
    """One prompt with the model's answer.

    reward: of the answer, if the objective has rewards. held_out: whether the prompt is not trained on.
    """

    prompt: str
    answer: str
    reference: str | None = None
    reward: float | None = None
    held_out: bool = True


class Group(Protocol):
    """A group of processes. All methods are collectives."""

    index: int
    count: int

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        ...

    def barrier(self) -> None: ...


class Ranks(Group, Protocol):
    """The ranks of a run, for objectives."""

    device: torch.device

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside, every rank has all weights of the (wrapped) model. Yields the model without its wrapper."""
        ...

    def whole_copy(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The same for a frozen model that was never wrapped."""
        ...


class Rollouts(Protocol):
    """The optional part of an objective, for those that train on samples of the model (rollouts). The defaults are for
    steps that depend only on the data.
    """

    def can_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint after `step` steps has everything that the next step needs."""
        return True

    def next_batch_is_slow(self, step: int) -> bool:
        """Whether preparing the next step is slow (a rollout), so that the loop checks for stop requests first. Only
        if `can_checkpoint` is true.
        """
        return False

    def after_step(self, step: int) -> None:
        """A collective after step number `step`, before metrics, validation and checkpoints: the only place between
        two steps where an objective changes its state.
        """
        return

    def extra_metrics(self) -> Mapping[str, float]:
        """Extra metrics of the last step, by full name; identical on all ranks. They are written at once."""
        return {}

    def state(self) -> Mapping[str, float]:
        """The state of the objective that a checkpoint stores besides weights and step."""
        return {}

    def resume(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        return


class Objective(Rollouts, Protocol):
    """What a run trains. An objective has this class as its base, and so its defaults.

    terms: the names of the loss's terms. The loss is the sum over terms of (global sum) / (global count).
    peft_task_type: CAUSAL_LM, TOKEN_CLS, SEQ_CLS or FEATURE_EXTRACTION.
    tokenizer: with the chat template in use.
    """

    terms: tuple[str, ...] = ("loss",)
    peft_task_type: str
    tokenizer: Any

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None: ...

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The size of the run. A stream that ends before the planned steps replaces it at its last step."""
        ...

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """Facts for run.json and checkpoints: digests of data, model and chat template, counts of rows so far."""
        ...

    @abstractmethod
    def load_model(self) -> nn.Module:
        """The model before tuning and sharding."""
        ...

    def add_modules(self, model: nn.Module) -> nn.Module:
        """The tuned model with further modules that the objective trains, before sharding."""
        return model

    @abstractmethod
    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches of each optimizer step, from `start_step` on; equally many on every rank. Ends
        with the last step of `plan`.
        """
        ...

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Differentiable sum of each term over the batch; never a mean."""
        ...

    @abstractmethod
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Held-out metrics: sums and counts are added over ranks, then divided once."""
        ...

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """The model's answers to a few held-out prompts, for the user; with rewards, also to prompts of the last
        rollout. Called after `validate`.
        """
        return []

    def real_rows(self) -> Sequence[Sequence[int]]:
        """Tokens of a row, or none, the same on all ranks, for the batch whose answers are recorded."""
        return []

    def save_assets(self, folder: Path) -> None:
        """Write the files that a merged checkpoint needs besides the weights: the tokenizer with its chat template."""
        self.tokenizer.save_pretrained(folder)


class Tuning(Protocol):
    """Which weights are trained."""

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        """Extra keyword arguments of `from_pretrained` (quantisation)."""
        ...

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze, wrap or adapt the model; afterwards exactly the trained parameters have `requires_grad`."""
        ...

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """Write what a merge needs besides the trained weights (an adapter's config). Called on the first rank."""
        ...


class Recorder(Protocol):
    """Records the answers of the model in training in each checkpoint, for the merge. All methods are collectives."""

    def begin(self, model: nn.Module) -> None:
        """Record before the first step of a run."""
        ...

    def resume(self, folder: Path) -> None:
        """Replaces `begin` for a run that resumes from the checkpoint in `folder`."""
        ...

    def files(self, model: nn.Module) -> Mapping[str, bytes]:
        """Files for the checkpoint's folder `tuning`, by name."""
        ...
