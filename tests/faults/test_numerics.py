"""F13: a loss on one rank that is not finite, or a spike: no rank updates, and training goes on; or gives up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, losses, status, world
from tests.support.training_runs import TINY, metrics
from train.checkpoint import commit
from train.checkpoint.state import trained_weights

LOSS = "train.objectives.causal_lm:CausalLM.loss"
STEPS = 6
LINE, BAD = 3, 3  # the row whose loss is NaN, and the step that meets it


def options(**more: object) -> dict[str, object]:
    """Less than an epoch without dropout; every checkpoint is kept."""
    return {
        "model.path": TINY,
        "duration.max_steps": STEPS,
        "validation.every_steps": STEPS,
        "checkpoint.every_steps": 1,
        "checkpoint.keep_last": STEPS,
        **more,
    }


def poison(workplace: Workplace) -> list[dict[str, object]]:
    """NaN in place of the loss of whichever micro-batch holds that row: on one rank, in one step."""
    return [{"at": LOSS, "nth": 0, "do": f"nan {workplace.rows}:{LINE}"}]


def digest(run: Path, step: int) -> str:
    """sha256 of all trained weights of a checkpoint, whole, by name."""
    weights = trained_weights(commit.folder_of(run / "checkpoints", step))
    together = hashlib.sha256()
    for name in sorted(weights):
        together.update(weights[name].detach().float().numpy().tobytes())
    return together.hexdigest()


@pytest.fixture(scope="module")
def alone(zygote: Zygote, workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process whose loss is NaN at step BAD."""
    run = tmp_path_factory.mktemp("numerics") / "run"
    processes = zygote.run(workplace.arguments(run, **options()), run.parent / "log", orders=poison(workplace))
    assert processes.codes == [0], processes.output
    return run


def assert_skipped(run: Path) -> None:
    """Exactly step BAD left the weights as they were, and the run went on."""
    assert status(run)["state"] == "finished"
    assert digest(run, BAD - 2) != digest(run, BAD - 1) == digest(run, BAD) != digest(run, BAD + 1)
    assert sorted(losses(run)) == [step for step in range(1, STEPS + 1) if step != BAD]
    assert metrics(run, "train/skipped_steps") == {step: float(step >= BAD) for step in range(1, STEPS + 1)}
    assert commit.read_state(commit.folder_of(run / "checkpoints", STEPS))["skipped_steps"] == 1


def test_one_process_skips_the_update(alone: Path) -> None:
    assert_skipped(alone)


@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2", "zero3"])
def test_all_ranks_skip_where_one_is_not_finite(
    kind: str, alone: Path, zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    """The losses after it show that the other rank's weights are the same too."""
    run = tmp_path / "run"
    processes = zygote.run(workplace.arguments(run, **options()), tmp_path / "log", kind, poison(workplace))
    assert processes.codes == [0, 0], processes.output
    assert_skipped(run)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "overflow"),
    [(kind, "times") for kind in ("single", "ddp", "zero2")]
    + [(kind, "steeper") for kind in ("single", "ddp", "zero2", "zero3")],
)
def test_an_infinite_gradient_is_left_out(
    kind: str, overflow: str, zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    """Not every overflow is a NaN, which infects whatever it is added to; nor does every one show in the loss."""
    run = tmp_path / "run"
    orders = [{"at": LOSS, "nth": 0, "after_step": BAD - 1, "rank": 0, "do": f"{overflow} inf"}]
    processes = zygote.run(workplace.arguments(run, **options()), tmp_path / "log", kind, orders)
    assert processes.codes == [0] * world(kind), processes.output
    assert_skipped(run)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_in_bf16_deepspeed_skips_too(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """There it has no loss scale that would make it look for overflows anyway."""
    run = tmp_path / "run"
    arguments = workplace.arguments(run, **options(**{"run.precision": "bf16", "optim.learning_rate": 1e-2}))
    processes = zygote.run(arguments, tmp_path / "log", kind, poison(workplace))
    assert processes.codes == [0, 0], processes.output
    assert_skipped(run)


@pytest.mark.parametrize("kind", ["single", "ddp", "zero2"])
def test_it_gives_up_and_names_the_rows(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    orders = [{"at": LOSS, "nth": 0, "rank": world(kind) - 1, "do": "nan"}]
    arguments = workplace.arguments(run, **options(**{"run.max_skipped_steps": 2}))
    processes = zygote.run(arguments, tmp_path / "log", kind, orders)
    assert set(processes.codes) == {65}, processes.output
    said = status(run)
    assert (said["state"], said["exit_code"], said["step"]) == ("failed", 65, 3)
    assert "3 updates in a row" in said["reason"]
    assert f"{workplace.rows.name}:" in said["reason"]
    assert "Traceback" not in processes.output


def test_it_gives_up_where_every_loss_is_finite(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """No row is to blame."""
    run = tmp_path / "run"
    orders = [{"at": LOSS, "nth": 0, "do": "steeper inf"}]
    arguments = workplace.arguments(run, **options(**{"run.max_skipped_steps": 2}))
    processes = zygote.run(arguments, tmp_path / "log", orders=orders)
    assert processes.codes == [65], processes.output
    said = status(run)
    assert (said["state"], said["exit_code"], said["step"]) == ("failed", 65, 3)
    assert "3 updates in a row had no finite gradient, though every loss was finite" in said["reason"]


@pytest.mark.parametrize("kind", ["single", "ddp", "zero2", "zero3"])
def test_a_spike_is_left_out_by_all_ranks(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """One rank's loss is multiplied by 1000 at one step; the steps after it are not compared with that."""
    run, spike, last = tmp_path / "run", 9, 12
    choice = {
        "optim.spike_factor": 3,
        "duration.max_steps": last,
        "validation.every_steps": last,
        "checkpoint.keep_last": last,
    }
    orders = [{"at": LOSS, "nth": 0, "after_step": spike - 1, "rank": 0, "do": "times 1000"}]
    processes = zygote.run(workplace.arguments(run, **options(**choice)), tmp_path / "log", kind, orders)
    assert processes.codes == [0] * world(kind), processes.output
    assert processes.output.count(f"step {spike}: a loss of ") == 1
    assert digest(run, spike - 2) != digest(run, spike - 1) == digest(run, spike) != digest(run, spike + 1)
    assert sorted(losses(run)) == [step for step in range(1, last + 1) if step != spike]
    state = commit.read_state(commit.folder_of(run / "checkpoints", last))
    assert state["skipped_steps"] == 1
    assert state["recent_losses"] == pytest.approx(list(losses(run).values()))
