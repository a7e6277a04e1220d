"""The loop's bookkeeping, with an objective and a runtime that only say what they are told."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

from eval.metrics.perplexity import PERPLEXITY
from tests.support.ranks import Solo
from train.config import CheckpointConfig, Config, OptimConfig, ValidationConfig, WatchConfig
from train.engine.loop import Loop, Progress
from train.errors import NumericsError
from train.protocols import Batch, Objective, Plan

NAN = float("nan")


class Runtime(Solo):
    """Each update has the next of these gradient norms; none that is finite where the loss was not."""

    def __init__(self, norms):
        self.norms = iter(norms)

    def seed(self, *key):
        pass

    def micro_step(self, model, last):
        return contextlib.nullcontext()

    def backward(self, sums, counts):
        self.finite = all(math.isfinite(value) for value in sums.values())

    def step(self, model, optimizer):
        norm = next(self.norms)
        return norm if self.finite else NAN

    def gather(self, items):
        return items

    def memory_gb(self):
        return 0.0


class ToyObjective(Objective):
    """Two micro-batches a step, of 3 tokens each, with the given loss; validation losses in order."""

    terms = ("loss",)
    metadata = load_model = None

    def __init__(self, losses, validations, told):
        self.losses, self.validations, self.told = losses, iter(validations), iter(told)

    @property
    def plan(self):
        total = len(self.losses)
        return Plan(total, (total,), 6.0, 2.0, 0.0, 1.0, 1.0, ())

    def steps(self, model, start):
        for step in range(start, len(self.losses)):
            yield [Batch({}, torch.zeros(1), {"loss": 3.0}, 3, 3, (f"rows:{step}{part}",)) for part in "ab"]

    def loss(self, model, batch):
        step, part = int(batch.row_ids[0][5:-1]), batch.row_ids[0][-1]
        value = self.losses[step]
        return {"loss": torch.tensor(3.0 * value if part == "b" or math.isfinite(value) else 3.0)}

    def validate(self, model):
        found = next(self.validations)
        return found if isinstance(found, dict) else {"loss": found}

    def after_step(self, step):
        self.told_of_step = next(self.told, {})

    def extra_metrics(self):
        return self.told_of_step


class Watch:
    def __init__(self):
        self.written = {}

    def metrics(self, step, values):
        self.written.setdefault(step, {}).update(values)

    def samples(self, step, samples):
        pass

    def progress(self, step, loss, speed):
        pass


def run(
    losses, norms=None, validations=(), watch_every=1, allowed=10, metric="loss", told=(), kind=ToyObjective,
    stop=lambda: False, spike_factor=None, start=None,
):  # fmt: skip
    """What was written, the progress at the end, and the steps that were saved."""
    config = Config(
        objective="token_classification",  # which has the metrics loss and f1
        validation=ValidationConfig(metric=metric, at_start=False, every_steps=1 if validations else 10**6),
        checkpoint=CheckpointConfig(every_steps=10**6),
        watch=WatchConfig(every_steps=watch_every),
        optim=OptimConfig(spike_factor=spike_factor),
    )
    config = config.__class__(**{**vars(config), "run": config.run.__class__(max_skipped_steps=allowed)})
    watch, saved, model = Watch(), [], torch.nn.Linear(1, 1)
    objective = kind(losses, validations or [1.0], told)
    loop = Loop(
        config, Runtime(norms or losses), objective, model, torch.optim.SGD(model.parameters()), watch,
        lambda progress: saved.append(progress.step), stop, 1.0, 1.0,
    )  # fmt: skip
    progress = start or Progress()
    loop.fit(progress)
    return watch.written, progress, saved


def test_a_skipped_step_leaves_the_others_of_its_window():
    written, progress, _ = run([1.0, NAN, 4.0, 2.0], watch_every=4)
    assert written[4]["train/loss"] == pytest.approx(7 / 3)
    assert written[4]["train/skipped_steps"] == progress.skipped_steps == 1


def test_what_an_objective_has_to_tell_is_written_at_once():
    """A rollout's numbers are not lost between two lines of the steps' own."""
    written, _, _ = run([1.0, 2.0, 3.0, 4.0], watch_every=3, told=[{"x": 1.0}, {}, {"x": 3.0}])
    assert [(step, "train/loss" in values) for step, values in written.items()] == [(1, False), (3, True), (4, True)]
    assert [written[step].get("x") for step in (1, 3, 4)] == [1.0, 3.0, None]
    assert written[3]["train/loss"] == 2.0


@pytest.mark.parametrize("drawn_before", [2, 3])
def test_a_stop_is_asked_for_before_work_that_would_be_thrown_away(drawn_before):
    """Two steps make a rollout. A stop that is asked for while the next is drawn ends the run too, before its steps."""
    drawn = []

    class Rollouts(ToyObjective):
        def steps(self, model, start):
            for batches in super().steps(model, start):
                drawn.append(batches)
                yield batches

        def can_checkpoint(self, step):
            return step % 2 == 0

        next_batch_is_slow = can_checkpoint

    _, progress, saved = run([1.0] * 6, kind=Rollouts, stop=lambda: len(drawn) >= drawn_before)
    assert (progress.step, saved, len(drawn)) == (2, [2], drawn_before)


def test_a_window_of_skipped_steps_has_no_loss():
    written, _, _ = run([1.0, NAN, 2.0])
    assert ["train/loss" in written[step] for step in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (3.0, math.exp(3.0)), (720.0, math.inf)])
def test_the_perplexity_is_evaluations(loss, expected):
    written, _, _ = run([loss], norms=[1.0])
    columns = {"nll": np.array([6 * loss]), "tokens": np.array([6.0])}
    assert written[1]["train/perplexity"] == PERPLEXITY.of(columns) == expected


def test_it_gives_up_naming_the_rows_of_the_micro_batch_to_blame():
    with pytest.raises(NumericsError, match=r"step 3: 2 updates in a row .*micro-batches of: rows:2b\)"):
        run([1.0, NAN, NAN, 1.0], allowed=1)
    with pytest.raises(NumericsError, match="check these rows"):
        run([1.0, NAN, NAN, 1.0], allowed=1)
    with pytest.raises(NumericsError, match=r"though every loss was finite\. Lower optim\.learning_rate") as raised:
        run([1.0, 1.0, 1.0], norms=[math.inf] * 3, allowed=1)
    assert "rows" not in str(raised.value)  # none is to blame
    run([1.0, NAN, 1.0, NAN, 1.0], allowed=1)  # not in a row


@pytest.mark.parametrize("worthless", [NAN, math.inf])
def test_a_validation_that_is_not_finite_is_never_the_best(worthless):
    _, progress, saved = run([1.0] * 4, validations=[worthless, 2.0, 1.5, worthless])
    assert (progress.best_value, progress.best_step) == (1.5, 3)
    assert progress.validations_without_better == 1
    assert saved == [2, 3, 4]


def test_of_two_that_are_equally_good_the_one_with_the_lower_loss_is_the_best():
    looks = [{"f1": 0.0, "loss": 0.6}, {"f1": 0.0, "loss": 0.5}, {"f1": 0.0, "loss": 0.7}]
    _, progress, saved = run([1.0] * 3, validations=looks, metric="f1")
    assert (progress.best_value, progress.best_step, progress.best_loss) == (0.0, 2, 0.5)
    assert saved == [1, 2, 3]


def test_a_loss_far_above_those_before_is_left_out(caplog):
    """The steps after it train, and are not compared with it."""
    losses = [2.0] * 8 + [2000.0, 2.0, 2000.0, 5.5, 2.0]
    written, progress, _ = run(losses, spike_factor=3.0)
    assert [step for step, values in written.items() if "train/loss" not in values] == [9, 11]
    assert progress.skipped_steps == 2
    assert progress.recent_losses == [loss for loss in losses if loss < 2000.0]
    assert [record.message for record in caplog.records] == [
        f"step {step}: a loss of 2000 is over 3 times the median of the last {count}, 2; the update is skipped "
        "(optim.spike_factor)"
        for step, count in ((9, 8), (11, 9))
    ]
    assert run(losses)[1].skipped_steps == 0


def test_a_resumed_run_compares_with_the_losses_before():
    start = Progress(step=1, recent_losses=[2.0] * 64)
    _, progress, _ = run([2.0, 2000.0, 3.0], spike_factor=3.0, start=start)
    assert progress.skipped_steps == 1
    assert progress.recent_losses == [2.0] * 63 + [3.0]


@pytest.mark.parametrize("losses", [[2000.0] * 7 + [2.0] * 9, [2.0] * 7 + [2000.0], [2.0] * 9 + [NAN, 2.0]])
def test_what_is_no_spike(losses, caplog):
    """The first losses have nothing to be compared with."""
    _, progress, _ = run(losses, spike_factor=3.0)
    assert progress.skipped_steps == sum(math.isnan(loss) for loss in losses)
    assert not caplog.records


def test_it_gives_up_where_the_loss_stays_high():
    with pytest.raises(NumericsError, match=r"step 10: 2 updates in a row were skipped.*raise optim\.spike_factor"):
        run([2.0] * 8 + [2000.0] * 3, spike_factor=3.0, allowed=1)
