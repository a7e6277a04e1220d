"""Killed and continued with other numbers of ranks: the same rows in each step, the same numbers but for rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.process.test_ppo import ROUNDING, WATCHED, Place
from tests.support.compare import assert_equal
from tests.support.fault_runs import STEPS, Workplace, Zygote, finished, losses
from tests.support.training_runs import TINY
from train.checkpoint import commit
from train.checkpoint.state import trained_weights

UPDATE = "train.engine.loop:Loop._update"
TOLERANCE = 1e-5  # relative, in float32; see tests/process/test_equalities.py for the optimizer's options
EXACT: dict[str, object] = {"model.path": TINY, "optim.learning_rate": 1e-2, "optim.epsilon": 1e-4}
LORA: dict[str, object] = {"tuning.kind": "lora"}
# Two packs in every step, for one rank and for two.
TWO_PACKS: dict[str, object] = {"batch.tokens_per_step": 512, "batch.tokens_per_micro_batch": 400}
DROPOUT: dict[str, object] = LORA | {"tuning.lora.dropout": 0.1}

Rows = dict[int, list[list[str]]]  # step -> the rows of each micro-batch, over all ranks


class Life(NamedTuple):
    """How a run is spread until it is killed before its update `dies_at` (or comes to its end)."""

    kind: str
    ranks: int
    dies_at: int = 0


CASES = {
    "one, two, one": ({}, Life("single", 1, 5), Life("ddp", 2, 5), Life("single", 1)),
    "lora: two, one, two": (LORA, Life("ddp", 2, 5), Life("single", 1, 5), Life("ddp", 2)),
    "zero-2: two, one, two": ({}, Life("zero2", 2, 5), Life("zero2", 1, 5), Life("zero2", 2)),
    "zero-3: two, one, two": ({}, Life("zero3", 2, 5), Life("zero3", 1, 5), Life("zero3", 2)),
    "zero-2, lora: one, two": (LORA, Life("zero2", 1, 7), Life("zero2", 2)),
    "zero-3, lora: one, three": (LORA, Life("zero3", 1, 7), Life("zero3", 3)),
    "zero-1 on two, zero-3 on one": ({}, Life("zero1", 2, 7), Life("zero3", 1)),
}


def micro_batches(file: Path) -> Rows:
    """What the plug wrote: over all ranks, in an order that depends on none of them."""
    found: Rows = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        found.setdefault(line["step"], []).extend(sorted(rows) for rows in line["rows"] if rows)
    return {step: sorted(groups) for step, groups in found.items()}


def rows_of(steps: Rows) -> dict[int, list[str]]:
    """step -> its rows, however they were cut."""
    return {step: sorted(row for group in groups for row in group) for step, groups in steps.items()}


class Runner:
    """Runs of several lives over the same rows."""

    def __init__(self, zygote: Zygote, workplace: Workplace, folder: Path) -> None:
        self.zygote, self.workplace, self.folder = zygote, workplace, folder

    def live(self, name: str, options: dict[str, object], *lives: Life) -> list[Rows]:
        """One life after the other in the run folder `name`; the rows that each was given."""
        arguments, told = self.workplace.arguments(self.folder / name, **options), []
        for number, life in enumerate(lives):
            file = self.folder / f"{name}-{number}.rows"
            orders = [{"at": UPDATE, "nth": 0, "do": f"rows {file}"}]
            if life.dies_at:  # a later order is carried out first
                orders.append({"at": UPDATE, "nth": life.dies_at, "do": "SIGKILL"})
            log = self.folder / f"{name}-{number}"
            processes = self.zygote.run(arguments, log, life.kind, orders, life.ranks)
            assert (-9 in processes.codes) if life.dies_at else set(processes.codes) == {0}, processes.output
            if number:
                said = f"written by {lives[number - 1].ranks} process"
                assert said in processes.output
            told.append(micro_batches(file))
        return told


@pytest.fixture(scope="module")
def runner(zygote: Zygote, workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(zygote, workplace, tmp_path_factory.mktemp("elastic"))


def uncut(runner: Runner, name: str, options: dict[str, object], life: Life) -> tuple[Path, Rows]:
    """The same run without a cut; once for all cases."""
    run = runner.folder / name
    if not run.exists():
        runner.live(name, options, life)
    return run, micro_batches(runner.folder / f"{name}-0.rows")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (trained_weights(commit.folder_of(run / "checkpoints", finished(run)[-1])) for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (second[name] - tensor).norm() <= TOLERANCE * tensor.norm(), name


@pytest.mark.parametrize("case", CASES)
def test_the_same_rows_and_the_same_numbers_up_to_rounding(case: str, runner: Runner) -> None:
    options, *lives = CASES[case]
    tuning = "lora" if options else "full"
    reference, expected = uncut(runner, f"whole-{tuning}", EXACT | options, Life("single", 1))
    name = case.replace(" ", "-").replace(",", "").replace(":", "")
    told = runner.live(name, EXACT | options, *lives)
    cut = runner.folder / name
    assert sorted(rows_of(expected)) == list(range(1, STEPS + 1))
    assert {step for part in told for step in part} == set(range(1, STEPS + 1))
    for part in told:
        for step, rows in rows_of(part).items():
            assert rows == rows_of(expected)[step], step
    assert losses(cut) == pytest.approx(losses(reference), rel=TOLERANCE)
    assert_same_weights(reference, cut)


@pytest.mark.parametrize(("kind", "alone"), [("ddp", "single"), ("zero2", "zero2")])
def test_with_dropout_the_same_micro_batches_draw_the_same(kind: str, alone: str, runner: Runner) -> None:
    """Where one rank computes the micro-batches that two would, dropout makes no difference between them."""
    options = TWO_PACKS | DROPOUT | {"optim.epsilon": 1e-4}
    reference, expected = uncut(runner, "whole-dropout", options, Life("single", 1))
    assert all(len(groups) == 2 for groups in expected.values())
    name = f"dropout-{kind}"
    for part in runner.live(name, options, Life(kind, 2, 7), Life(alone, 1)):
        assert all(part[step] == expected[step] for step in part)
    assert losses(runner.folder / name) == pytest.approx(losses(reference), rel=TOLERANCE)
    assert_same_weights(reference, runner.folder / name)


@pytest.mark.parametrize(("kind", "alone"), [("ddp", "single"), ("zero2", "zero2")])
def test_answers_of_a_rollout_do_not_depend_on_ranks(kind: str, alone: str, zygote: Zygote, tmp_path: Path) -> None:
    """PPO: killed on two ranks between two rollouts' checkpoints, continued by one."""
    place = Place(tmp_path, zygote)
    options: dict[str, object] = {"checkpoint__every_steps": 4, "checkpoint__asynchronous": "false"}
    options["tuning__kind"] = "lora"
    whole = place.run("whole", **options)
    orders = [{"at": UPDATE, "nth": 7, "do": "SIGKILL"}]
    assert -9 in zygote.run(place.words("cut", **options), tmp_path / "killed", kind, orders).codes
    assert finished(tmp_path / "cut") == [4]
    processes = zygote.run(place.words("cut", **options), tmp_path / "continued", alone, ranks=1)
    assert processes.codes == [0], processes.output
    assert "written by 2 processes" in processes.output
    assert_equal(whole, tmp_path / "cut", WATCHED, ROUNDING)
