"""The training loop: steps, gradient accumulation, validation, checkpoints, and the ends of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from eval.metrics.perplexity import perplexity_of
from train.config import Config
from train.engine.optimizer import learning_rate
from train.engine.runtime import Runtime
from train.engine.spikes import Spikes
from train.errors import NumericsError
from train.failure.heartbeat import HEARTBEAT
from train.protocols import Batch, Objective

ROWS_NAMED = 10  # in a message
STOP_REQUESTED = "asked to stop"
SHARE_REACHED = "run.stop_at_share reached"

State = Literal["finished", "preempted"]


@dataclass
class Progress:
    """The progress of a run. A checkpoint contains it besides model and optimizer."""

    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    recent_losses: list[float] = field(default_factory=list)  # see `train.engine.spikes`
    validations_without_better: int = 0
    seconds: float = 0.0
    objective: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    state: State
    step: int
    reason: str


class Watch(Protocol):
    """Writes metrics and samples on the first rank; does nothing on the others."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, samples: Sequence[Any]) -> None: ...
    def progress(self, step: int, loss: float, tokens_per_second: float) -> None: ...


@dataclass(frozen=True)
class Loss:
    """The loss terms of one micro-batch, summed in float64 without gradients, and its rows."""

    sums: Mapping[str, Tensor]
    row_ids: tuple[str, ...]


@dataclass
class Totals:
    """Sums over the steps since metrics were last written. positions: tokens and padding."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    positions: float = 0.0
    seconds: float = 0.0

    def add(self, losses: Sequence[Loss], counts: Mapping[str, float]) -> None:
        """Add a step. The sums stay on the device, so that nothing waits for them."""
        for loss in losses:
            for term, value in loss.sums.items():
                self.sums[term] = self.sums[term] + value if term in self.sums else value
        for term in self.sums:
            self.counts[term] = self.counts.get(term, 0.0) + counts[term]


class Loop:
    """Trains `model` on `objective` until it is finished or asked to stop."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        objective: Objective,
        model: nn.Module,
        optimizer: Any,
        watch: Watch,
        save: Callable[[Progress], None],
        stop_requested: Callable[[], bool],
        model_flops_per_token: float,
        peak_flops: float,
    ) -> None:
        self.config, self.runtime, self.objective = config, runtime, objective
        self.model, self.optimizer, self.watch = model, optimizer, watch
        self.save, self.stop_requested = save, stop_requested
        self.model_flops_per_token, self.peak_flops = model_flops_per_token, peak_flops
        self.planned_steps = objective.plan.total_steps  # of the learning rate schedule: a stream may be shorter
        self.totals = Totals()
        self.skipped_in_a_row = 0
        self.spikes = Spikes(config.optim.spike_factor, runtime)

    def fit(self, progress: Progress) -> Outcome:
        """Train from `progress` on, which is updated in place.

        Raises NumericsError if too many updates in a row had no finite gradient, or were spikes.
        """
        saved_at = progress.step or None  # a resumed run comes from a checkpoint of this step
        HEARTBEAT.step = progress.step
        self.spikes.recent = progress.recent_losses
        if progress.step == 0 and self.config.validation.at_start:
            self._validate(progress)
        self.model.train()
        steps = self.objective.steps(self.model, progress.step)
        while (reason := self._over(progress)) is None:
            began = time.monotonic()
            HEARTBEAT.enter("data")
            batches = next(steps, None)
            if batches is None:
                reason = "all data seen"  # before the run was resumed
                break
            counts, stop = self._agree(batches)
            if stop and self.objective.can_checkpoint(progress.step):
                reason = STOP_REQUESTED
                break
            self._step(batches, counts, progress, began)
            better = self._due(self.config.validation.every_steps, progress.step) and self._validate(progress)
            due = self._due(self.config.checkpoint.every_steps, progress.step)
            if due or (better and self.config.checkpoint.keep_best):
                self._save(progress)
                saved_at = progress.step
        if saved_at != progress.step:
            self._save(progress)
        HEARTBEAT.enter("ending", slow=True)
        state: State = "preempted" if reason in (STOP_REQUESTED, SHARE_REACHED) else "finished"
        return Outcome(state, progress.step, reason)

    def _save(self, progress: Progress) -> None:
        HEARTBEAT.enter("saving", slow=True)
        self.save(progress)

    def _over(self, progress: Progress) -> str | None:
        """Why the run ends here, or None; the same on all ranks."""
        patience = self.config.validation.patience
        if progress.step >= self.objective.plan.total_steps:
            return "all steps done"
        if patience and progress.validations_without_better >= patience:
            return f"no better {self.config.validation.metric} in {patience} validations"
        if self._has_share(progress.step):
            return SHARE_REACHED
        if self.objective.next_batch_is_slow(progress.step):  # a separate exchange before work that a stop would waste
            HEARTBEAT.enter("agreeing")
            if self.runtime.sum([float(self.stop_requested())])[0]:
                return STOP_REQUESTED
        return None

    def _has_share(self, step: int) -> bool:
        """Whether `step` is a validation from run.stop_at_share of all steps on."""
        share = self.config.run.stop_at_share
        if not share or step == 0 or step < share * self.objective.plan.total_steps - 1e-9:
            return False
        return self._due(self.config.validation.every_steps, step) and self.objective.can_checkpoint(step)

    def _step(self, batches: Sequence[Batch], counts: Mapping[str, float], progress: Progress, began: float) -> None:
        """One update, and its metrics."""
        norm, losses = self._update(batches, counts, progress.step)
        progress.step += 1
        HEARTBEAT.done(progress.step)
        progress.tokens += int(counts["tokens"])
        self.totals.seconds += time.monotonic() - began
        progress.seconds += time.monotonic() - began
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            self.totals.add(losses, counts)
            self.spikes.updated()
        else:  # without an update, the loss does not count
            self._skipped(losses, progress)
        self.objective.after_step(progress.step)
        self._write(progress, norm)

    def _agree(self, batches: Sequence[Batch]) -> tuple[dict[str, float], bool]:
        """Global counts of this step, and whether any rank was asked to stop: one exchange for both."""
        HEARTBEAT.enter("agreeing")
        terms = self.objective.terms
        mine = [sum(b.counts.get(term, 0.0) for b in batches) for term in terms]
        mine += [sum(b.tokens for b in batches), sum(b.positions for b in batches), float(self.stop_requested())]
        *joined, tokens, positions, stops = self.runtime.sum(mine)
        counts = dict(zip(terms, joined, strict=True))
        self.totals.tokens += tokens
        self.totals.positions += positions
        return counts | {"tokens": tokens}, bool(stops)

    def _update(self, batches: Sequence[Batch], counts: Mapping[str, float], step: int) -> tuple[float, list[Loss]]:
        """One optimizer step. Returns the gradient norm (if not finite, there was no update) and the losses."""
        rate = learning_rate(step, self.planned_steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for index, batch in enumerate(batches):
            self.runtime.seed(self.config.run.seed, step, index)
            last = index == len(batches) - 1
            with self.runtime.micro_step(self.model, last):
                HEARTBEAT.enter("forward")
                sums = self.objective.loss(self.model, batch.to(self.runtime.device))
                losses.append(Loss({term: value.detach().double() for term, value in sums.items()}, batch.row_ids))
                if last and self.spikes.found(step + 1, [loss.sums for loss in losses], counts):
                    sums = {term: value * math.nan for term, value in sums.items()}
                HEARTBEAT.enter("backward")
                self.runtime.backward(sums, counts)
        HEARTBEAT.enter("update")
        return self.runtime.step(self.model, self.optimizer), losses

    def _skipped(self, losses: Sequence[Loss], progress: Progress) -> None:
        """Count an update that was skipped for a non-finite gradient or a spike; raise after too many in a row."""
        progress.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row <= self.config.run.max_skipped_steps:
            return
        if self.spikes.message:
            raise NumericsError(
                f"step {progress.step}: {self.skipped_in_a_row} updates in a row were skipped, the last since "
                f"{self.spikes.message}. Lower optim.learning_rate, check the data, or raise optim.spike_factor"
            )
        bad = [loss for loss in losses if not all(math.isfinite(value) for value in loss.sums.values())]
        rows = self.runtime.gather([row for loss in bad for row in loss.row_ids])
        where, look = ", though every loss was finite", ""
        if rows:
            more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
            where = f" (non-finite loss in the micro-batches of: {', '.join(rows[:ROWS_NAMED])}{more})"
            look = " check these rows,"
        raise NumericsError(
            f"step {progress.step}: {self.skipped_in_a_row} updates in a row had no finite gradient{where}. "
            f"Lower optim.learning_rate,{look} or use run.precision bf16 or fp32"
        )

    def _write(self, progress: Progress, norm: float) -> None:
        """Write the objective's extra metrics, and every `watch.every_steps` steps the totals since the last time."""
        extra = dict(self.objective.extra_metrics())
        if progress.step % self.config.watch.every_steps and progress.step != self.objective.plan.total_steps:
            if extra:
                self.watch.metrics(progress.step, extra)
            return
        HEARTBEAT.enter("metrics")
        totals = self.totals
        terms = [term for term in self.objective.terms if totals.counts.get(term)]
        sums = self.runtime.sum([float(totals.sums[term]) for term in terms])
        means = {term: total / totals.counts[term] for term, total in zip(terms, sums, strict=True)}
        speed = totals.tokens / max(totals.seconds, 1e-9)
        loss = sum(means.values()) if means else float("nan")
        values = {f"train/{term}": mean for term, mean in means.items()}
        values |= {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": norm,
            "train/tokens_per_second": speed,
            "train/mfu": speed * self.model_flops_per_token / self.peak_flops,
            "train/padding_share": 1.0 - totals.tokens / max(totals.positions, 1.0),
            "train/memory_gb": self.runtime.memory_gb(),
            "train/epoch": self.objective.plan.epoch(progress.step),
            "train/tokens": float(progress.tokens),
            "train/skipped_steps": float(progress.skipped_steps),
        }
        if "loss" in means:
            values["train/perplexity"] = perplexity_of(means["loss"])
        self.watch.metrics(progress.step, values | extra)
        self.watch.progress(progress.step, loss, speed)
        self.totals = Totals()

    def _due(self, every: int | None, step: int) -> bool:
        """Whether `step` is a multiple of `every` (None: the end of an epoch), or the last step."""
        plan = self.objective.plan
        return step >= plan.total_steps or (step % every == 0 if every else step in plan.epoch_ends)

    def _validate(self, progress: Progress) -> bool:
        """Write held-out metrics and samples. Returns whether the chosen metric is the best so far."""
        HEARTBEAT.enter("validation")
        values = self.objective.validate(self.model)
        self.watch.metrics(progress.step, {f"validation/{name}": value for name, value in values.items()})
        self.watch.samples(progress.step, self.objective.samples(self.model))
        self.model.train()
        metric = self.config.validation.metric
        value = values.get(metric)
        if value is None or progress.step == 0:  # before training, there is no checkpoint to keep
            return False
        sign = 1.0 if self.config.spec.metrics[metric] else -1.0
        best = math.inf if progress.best_value is None else sign * progress.best_value
        loss = values.get("loss", 0.0)
        tied = sign * value == best and progress.best_loss is not None and loss <= progress.best_loss
        better = math.isfinite(value) and sign * value < best
        progress.validations_without_better = 0 if better else progress.validations_without_better + 1
        if better or tied:
            progress.best_value, progress.best_step, progress.best_loss = value, progress.step, loss
        return better or tied
