"""The only training loop: steps, accumulation, validation, checkpoints, and the ways a run can end."""

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
ASKED = "asked to stop"


@dataclass
class Progress:
    """How far a run has come: with the weights and the optimizer, all that a checkpoint holds."""

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
    """How a run ended."""

    state: Literal["finished", "preempted"]
    step: int
    reason: str


class Watch(Protocol):
    """Where numbers and texts go; silent on all ranks but the first."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, samples: Sequence[Any]) -> None: ...
    def progress(self, step: int, loss: float, tokens_per_second: float) -> None: ...


@dataclass(frozen=True)
class Loss:
    """The terms of one micro-batch, summed in float64 without gradients, and the rows they come from."""

    sums: Mapping[str, Tensor]
    row_ids: tuple[str, ...]


@dataclass
class Window:
    """What has gathered since metrics were last written."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    slots: float = 0.0
    seconds: float = 0.0

    def add(self, losses: Sequence[Loss], counts: Mapping[str, float]) -> None:
        """Join a step; the sums stay on the device, so that nothing waits for them."""
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
        self.planned_steps = objective.plan.total_steps  # the learning rate's: a stream may turn out to be shorter
        self.window = Window()
        self.skipped_in_a_row = 0
        self.spikes = Spikes(config.optim.spike_factor, runtime)

    def fit(self, progress: Progress) -> Outcome:
        """Run from `progress` on; it is updated in place.

        Raises NumericsError when too many updates in a row had no finite gradient, or were spikes.
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
                reason = "all data seen"  # by the run that is resumed here
                break
            counts, stop = self._agree(batches)
            if stop and self.objective.can_checkpoint(progress.step):
                reason = ASKED
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
        return Outcome("preempted" if reason == ASKED else "finished", progress.step, reason)

    def _save(self, progress: Progress) -> None:
        HEARTBEAT.enter("saving", slow=True)
        self.save(progress)

    def _over(self, progress: Progress) -> str | None:
        """Why there is nothing more to do, or None; the same on all ranks."""
        patience = self.config.validation.patience
        if progress.step >= self.objective.plan.total_steps:
            return "all steps done"
        if patience and progress.validations_without_better >= patience:
            return f"no better {self.config.validation.metric} in {patience} validations"
        if self.objective.next_batch_is_slow(progress.step) and self._asked():
            return ASKED
        return None

    def _asked(self) -> bool:
        """Whether any rank was asked to stop: an exchange of its own, before work that would be thrown away."""
        HEARTBEAT.enter("agreeing")
        return bool(self.runtime.sum([float(self.stop_requested())])[0])

    def _step(self, batches: Sequence[Batch], counts: Mapping[str, float], progress: Progress, began: float) -> None:
        """One update, and what is written about it."""
        norm, losses = self._update(batches, counts, progress.step)
        progress.step += 1
        HEARTBEAT.done(progress.step)
        progress.tokens += int(counts["tokens"])
        self.window.seconds += time.monotonic() - began
        progress.seconds += time.monotonic() - began
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            self.window.add(losses, counts)
            self.spikes.updated()
        else:  # the step taught nothing: its loss stays out of the curves
            self._skipped(losses, progress)
        self.objective.after_step(progress.step)
        self._write(progress, norm)

    def _agree(self, batches: Sequence[Batch]) -> tuple[dict[str, float], bool]:
        """Global counts of this step, and whether any rank was asked to stop: one exchange for both."""
        HEARTBEAT.enter("agreeing")
        terms = self.objective.terms
        mine = [sum(b.counts.get(term, 0.0) for b in batches) for term in terms]
        mine += [sum(b.tokens for b in batches), sum(b.slots for b in batches), float(self.stop_requested())]
        *joined, tokens, slots, stops = self.runtime.sum(mine)
        counts = dict(zip(terms, joined, strict=True))
        self.window.tokens += tokens
        self.window.slots += slots
        return counts | {"tokens": tokens}, bool(stops)

    def _update(self, batches: Sequence[Batch], counts: Mapping[str, float], step: int) -> tuple[float, list[Loss]]:
        """One optimizer step. Returns the gradient norm (not finite: nothing was updated) and the losses."""
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
        """Count an update that was skipped for a non-finite gradient or a spike; after too many in a row give up."""
        progress.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row <= self.config.run.max_skipped_steps:
            return
        if self.spikes.message:
            raise NumericsError(
                f"step {progress.step}: {self.skipped_in_a_row} updates in a row were left out, the last since "
                f"{self.spikes.message}. Lower optim.learning_rate, look at the data, or raise optim.spike_factor"
            )
        culprits = [loss for loss in losses if not all(math.isfinite(value) for value in loss.sums.values())]
        rows = self.runtime.gather([row for loss in culprits for row in loss.row_ids])
        where, look = ", though every loss was finite", ""
        if rows:
            more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
            where = f" (non-finite loss in the micro-batches of: {', '.join(rows[:ROWS_NAMED])}{more})"
            look = " look at these rows,"
        raise NumericsError(
            f"step {progress.step}: {self.skipped_in_a_row} updates in a row had no finite gradient{where}. "
            f"Lower optim.learning_rate,{look} or use run.precision bf16 or fp32"
        )

    def _write(self, progress: Progress, norm: float) -> None:
        """The objective's extra metrics, and every so many steps the metrics since the last time."""
        extra = dict(self.objective.extra_metrics())
        if progress.step % self.config.watch.every_steps and progress.step != self.objective.plan.total_steps:
            if extra:
                self.watch.metrics(progress.step, extra)
            return
        HEARTBEAT.enter("metrics")
        window = self.window
        terms = [term for term in self.objective.terms if window.counts.get(term)]
        sums = self.runtime.sum([float(window.sums[term]) for term in terms])
        means = {term: total / window.counts[term] for term, total in zip(terms, sums, strict=True)}
        speed = window.tokens / max(window.seconds, 1e-9)
        loss = sum(means.values()) if means else float("nan")
        values = {f"train/{term}": mean for term, mean in means.items()}
        values |= {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": norm,
            "train/tokens_per_second": speed,
            "train/mfu": speed * self.model_flops_per_token / self.peak_flops,
            "train/padding_share": 1.0 - window.tokens / max(window.slots, 1.0),
            "train/memory_gb": self.runtime.memory_gb(),
            "train/epoch": self.objective.plan.epoch(progress.step),
            "train/tokens": float(progress.tokens),
            "train/skipped_steps": float(progress.skipped_steps),
        }
        if "loss" in means:
            values["train/perplexity"] = perplexity_of(means["loss"])
        self.watch.metrics(progress.step, values | extra)
        self.watch.progress(progress.step, loss, speed)
        self.window = Window()

    def _due(self, every: int | None, step: int) -> bool:
        """Every so many steps, or where no number is given at the end of each epoch; and always at the end."""
        plan = self.objective.plan
        return step >= plan.total_steps or (step % every == 0 if every else step in plan.epoch_ends)

    def _validate(self, progress: Progress) -> bool:
        """Held-out metrics and samples; whether the chosen metric is the best so far."""
        HEARTBEAT.enter("validation")
        values = self.objective.validate(self.model)
        self.watch.metrics(progress.step, {f"validation/{name}": value for name, value in values.items()})
        self.watch.samples(progress.step, self.objective.samples(self.model))
        self.model.train()
        metric = self.config.validation.metric
        value = values.get(metric)
        if value is None or progress.step == 0:  # before training there is nothing to keep
            return False
        sign = 1.0 if self.objective.lower_is_better[metric] else -1.0
        best = math.inf if progress.best_value is None else sign * progress.best_value
        loss = values.get("loss", 0.0)
        tied = sign * value == best and progress.best_loss is not None and loss <= progress.best_loss
        better = math.isfinite(value) and sign * value < best
        progress.validations_without_better = 0 if better else progress.validations_without_better + 1
        if better or tied:
            progress.best_value, progress.best_step, progress.best_loss = value, progress.step, loss
        return better or tied
