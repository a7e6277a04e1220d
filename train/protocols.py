"""The shapes that the rooms of `train` share. Each axis (what is learned, which weights move, how it is spread) sees
only these.

Shape suffixes: b rows of a micro-batch, t positions.
"""

from __future__ import annotations

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
    targets: what each position shall give; for token objectives [b, t] with -100 where nothing is learned.
    counts: for each term of the loss, how many items this batch adds to its global count (0 for a filler batch that
        only
        keeps ranks in step).
    tokens: real tokens computed. slots: the same with padding.
    row_ids: the rows inside, for messages about them.
    extras: what else the loss needs; tensors.
    """

    inputs: Mapping[str, Any]
    targets: Tensor
    counts: Mapping[str, float]
    tokens: int
    slots: int
    row_ids: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in self.inputs.items()}
        extras = {name: tensor.to(device, non_blocking=True) for name, tensor in self.extras.items()}
        return replace(self, inputs=moved, targets=self.targets.to(device, non_blocking=True), extras=extras)


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, known before its first step.

    total_steps: for a stream the most there can be, until it knows.
    epoch_ends: the number of steps after each epoch, rising; empty while unknown (streaming).
    last_epoch_share: how much of the last epoch there is until the run ends.
    attention_length: positions that a token attends to, on average over tokens. head_share: share of the tokens for
        which
        the output head is computed. Both are for the model FLOPs utilisation only.
    lines: what a user would otherwise compute by hand, ready to print.
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
    """One prompt with the model's continuation.

    reward: what it is worth, where answers are rewarded. held_out: not of the prompts that are trained on.
    """

    prompt: str
    answer: str
    reference: str | None = None
    reward: float | None = None
    held_out: bool = True


class Group(Protocol):
    """Processes that work together. Every method is called by all of them together."""

    index: int
    count: int

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        ...

    def barrier(self) -> None:
        """Wait for all."""
        ...


class Ranks(Group, Protocol):
    """The processes of a run, as an objective may see them."""

    device: torch.device

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside, every rank has all weights of the (wrapped) model: the model without its wrapper."""
        ...

    def whole_copy(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The same for a frozen model that was never wrapped."""
        ...


class Rollouts(Protocol):
    """The optional part of an objective: for those whose steps learn from samples of the model in training. These
    defaults hold where the steps are a function of the data alone.
    """

    def can_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint after `step` steps holds all that the next step needs."""
        return True

    def next_batch_is_slow(self, step: int) -> bool:
        """Whether preparing the step after `step` steps is slow (a rollout), so that the loop first asks for stop
        requests. Only where `can_checkpoint` is true.
        """
        return False

    def after_step(self, step: int) -> None:
        """Called by all ranks together after step number `step`, before metrics, validation and checkpoints: the only
        place between two steps where an objective changes its state.
        """
        return

    def extra_metrics(self) -> Mapping[str, float]:
        """Extra metrics of the last step, by full name; identical on all ranks. They are written at once."""
        return {}

    def state(self) -> Mapping[str, float]:
        """What a checkpoint keeps of the objective beside weights and step."""
        return {}

    def resume(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        return


class Objective(Rollouts, Protocol):
    """What is learned. An objective names this class as its base and has its defaults.

    terms: the names of the loss's terms. The loss is the sum over terms of (sum over everything) / (count over
        everything).
    lower_is_better: for each validation metric that can choose the best checkpoint.
    best_metric: the metric that chooses it by default.
    peft_task_type: CAUSAL_LM, TOKEN_CLS, SEQ_CLS or FEATURE_EXTRACTION.
    tokenizer: the one in use.
    """

    terms: tuple[str, ...] = ("loss",)
    lower_is_better: Mapping[str, bool]
    best_metric: str
    peft_task_type: str
    tokenizer: Any

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None: ...

    @property
    def plan(self) -> Plan:
        """The arithmetic of the run. A stream that ends before the planned steps replaces it with its last step."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What run.json and the checkpoints record: digests of data, model and chat template, counts of rows so far."""
        ...

    def load_model(self) -> nn.Module:
        """The model before tuning and sharding."""
        ...

    def add_modules(self, model: nn.Module) -> nn.Module:
        """The tuned model with what the objective trains beside it, before sharding."""
        return model

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches of each optimizer step, from `start_step` on; equally many on every rank. Ends with
        the step that `plan` says is the last.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Differentiable sum of each term over the batch; never a mean."""
        ...

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Held-out metrics; sums and counts joined over ranks, then divided once."""
        ...

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """A few prompts continued, for people to read: held-out ones, and where answers are rewarded some of those last
        trained on. Called after `validate`.
        """
        return []

    def real_rows(self) -> Sequence[Sequence[int]]:
        """Tokens of a row or none, the same on all ranks, for the batch whose answers are recorded."""
        return []

    def save_assets(self, folder: Path) -> None:
        """Write what a merged checkpoint needs beside the weights: the tokenizer with its chat template."""
        self.tokenizer.save_pretrained(folder)


class Tuning(Protocol):
    """Which weights move."""

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        """Extra keyword arguments of `from_pretrained` (quantisation)."""
        ...

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze, wrap or adapt; afterwards `requires_grad` says what is trained."""
        ...

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """What the hand-over needs beside the trained weights (an adapter's config); called on the first rank."""
        ...


class Recorder(Protocol):
    """Keeps with each checkpoint what the model in training answers, for the merge. All ranks call it together."""

    def begin(self, model: nn.Module) -> None:
        """Before the first step of a run."""
        ...

    def resume(self, folder: Path) -> None:
        """In place of `begin`, for a run that goes on from the checkpoint in `folder`."""
        ...

    def files(self, model: nn.Module) -> Mapping[str, bytes]:
        """What the checkpoint's folder `tuning` shall hold, by name."""
        ...
