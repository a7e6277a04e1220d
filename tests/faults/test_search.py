"""Searches in processes: one or two workers, kills, stops, failures; and promoted trials with the real trainer."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import train.search.__main__
from tests.support.fault_runs import Workplace, Zygote, status, weights
from tests.support.searches import (
    STEPS,
    WarmStarter,
    finish_with_kills,
    outcomes,
    records,
    start,
    start_warm,
    starts,
    trained,
    words,
    write_space,
)
from tests.support.training_runs import environment, in_session, metrics
from train.report.run import Run, read_run
from train.search.__main__ import main
from train.search.fit import fit_of
from train.search.study import STALE_SECONDS, best
from train.search.trial import Ended, Starter, Trial
from zerotune.common.metric_format import plain


def finished(folder: Path, *more: str, report: bool = False, **keys: object) -> str:
    """Search to the end, undisturbed; what was said."""
    process = start(words(folder, write_space(folder, **keys), *more), report=report)
    assert process.wait(120) == 0, said(folder)
    return said(folder)


def said(folder: Path) -> str:
    return (folder / "search.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_killed_at_random_moments_it_ends_as_undisturbed(tmp_path: Path, pruner: str) -> None:
    """The worker, a training process, or both, by SIGKILL: all trials end as those of one start."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    keys = {"pruner": pruner, "trials": 6, "startup_trials": 3}
    finished(undisturbed, **keys)
    line = words(killed, write_space(killed, **keys))
    code = finish_with_kills(lambda: start(line, seconds=0.1), killed, 12, random.Random(pruner))
    assert code == 0, said(killed)
    assert outcomes(records(killed)) == outcomes(records(undisturbed))
    if pruner == "halving":  # the median stops a run a little later
        assert set(trained(killed)) == set(trained(undisturbed))


@pytest.mark.slow
def test_killed_with_the_real_trainer_it_ends_as_undisturbed(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same over models from scratch with dropout, one of which is promoted."""
    model = {"model.path": "", "model.family": "lstm", "model.width": 32, "model.dropout": 0.1}
    options = model | {"tokenizer.vocabulary_size": 300, "validation.every_steps": 3, "checkpoint.every_steps": 1}
    options |= {"validation.samples": 0, "data.cache_folder": tmp_path / "cache"}
    more = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    lines = {}
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        rates = {"optim.learning_rate": [1e-4, 1e-2, 1e-3]}
        space = write_space(tmp_path / name, method="grid", pruner="halving", reduction=3, rungs=2, parameters=rates)
        lines[name] = words(tmp_path / name, space, *more)
    with monkeypatch.context() as patch:
        patch.setattr(train.search.__main__, "_finish", lambda study: None)
        assert main(lines["undisturbed"], starter=WarmStarter(zygote=zygote)) == 0
    whole, killed = tmp_path / "undisturbed", tmp_path / "killed"
    code = finish_with_kills(lambda: start_warm(zygote, lines["killed"]), killed, 12, random.Random(0))
    assert code == 0, said(killed)
    assert outcomes(records(killed)) == outcomes(records(whole))
    assert [record.steps for record in records(killed)] == [3, 9, 3]
    for record in records(killed):
        one, other = (folder / "study" / "trials" / f"{record.number:04d}" for folder in (killed, whole))
        for name in ("train/loss", "validation/loss", "train/gradient_norm"):
            assert metrics(one, name) == metrics(other, name)
            assert [line["step"] for line in lines_of(one) if name in line] == list(metrics(other, name))


def test_two_workers_never_run_one_trial_twice(tmp_path: Path) -> None:
    """Two processes, one of them with two places, over one study."""
    line = words(tmp_path, write_space(tmp_path, method="random", trials=8))
    both = [start([*line, "--workers", "2"], seconds=0.03), start(line, seconds=0.03)]
    assert [process.wait(120) for process in both] == [0, 0], said(tmp_path)
    counts = Counter(trained(tmp_path))
    assert set(counts.values()) == {1}
    assert len(counts) == 8 * 9
    assert [record.state for record in records(tmp_path)] == ["complete"] * 8


def test_no_point_is_trained_twice(tmp_path: Path) -> None:
    """Six points, more trials: two processes, one of which is killed, train each point once."""
    parameters = {"optim.learning_rate": [0.1, 0.01], "optim.beta1": [0.7, 0.8, 0.9]}
    space = write_space(tmp_path, trials=20, startup_trials=2, parameters=parameters)
    line = words(tmp_path, space)
    killed, other = (start(line, seconds=0.05) for _ in range(2))
    until_trained(tmp_path, 10)
    killed.kill()
    killed.wait()
    assert other.wait(120) == 0, said(tmp_path)
    found = records(tmp_path)
    assert [record.state for record in found] == ["complete"] * 6
    assert len({json.dumps(record.values, sort_keys=True) for record in found}) == 6
    assert "6 trials, tpe, by validation loss; the space has only 6 points" in said(tmp_path)
    repeats = {record.number: record.repeated for record in found if record.repeated is not None}
    assert repeats
    for number, earlier in repeats.items():
        assert f"trial {number}: the first draw was that of trial {earlier} again; drawn anew" in said(tmp_path)


def test_two_workers_race_for_promotions(tmp_path: Path) -> None:
    """Three places of two processes promote along one journal: no step twice, and the trials of one worker."""
    rates = {"optim.learning_rate": [1e-4, 1e-3, 1e-2, 1e-1], "optim.beta1": [0.5, 0.8]}
    keys = {"method": "grid", "pruner": "halving", "reduction": 2, "rungs": 3, "parameters": rates}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    finished(alone, **keys)
    line = words(shared, write_space(shared, **keys))
    both = [start(words_of, racing=2) for words_of in ([*line, "--workers", "2"], line)]
    assert [process.wait(120) for process in both] == [0, 0], said(shared)
    promoted_by = {search for _, step, search in starts(shared) if int(step)}
    assert promoted_by == {str(process.pid) for process in both}
    assert set(Counter(trained(shared)).values()) == {1}
    assert set(Counter((trial, step) for trial, step, _ in starts(shared)).values()) == {1}
    one, other = records(alone), records(shared)
    assert [(r.number, r.values) for r in other] == [(r.number, r.values) for r in one]
    assert {r.state for r in other} == {"complete", "pruned"}
    for here, there in zip(one, other, strict=True):  # which trial is promoted early depends on who comes first
        rungs = min(len(here.rungs), len(there.rungs))
        assert here.rungs[:rungs] == there.rungs[:rungs]
    assert best(other, 1).number == best(one, 1).number
    assert best(other, 1).value == best(one, 1).value


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM", "stop file"])
def test_a_stopped_search_saves_and_the_same_command_continues(tmp_path: Path, by: str) -> None:
    file = tmp_path / "stop"
    line = words(tmp_path, write_space(tmp_path, method="random", trials=2), "--stop_file", str(file))
    before = signal.getsignal(signal.SIGINT)
    if by == "SIGTERM":  # started by a script's `&`, which its processes inherit
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start(line, seconds=0.3)
    signal.signal(signal.SIGINT, before)
    until_trained(tmp_path, 4)
    if by == "stop file":
        file.touch()
    else:
        process.send_signal(signal.Signals[by])
    assert process.wait(30) == (130 if by == "SIGINT" else 0)
    assert f"Stopped ({by}); the same command continues the search." in said(tmp_path)
    assert not file.exists()
    assert start(line).wait(60) == 0
    assert set(Counter(trained(tmp_path)).values()) == {1}


def until_trained(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "study" / "trained.log").exists() or len(trained(folder)) < count:
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.05)


def test_a_trial_of_a_lost_host_is_taken_over(tmp_path: Path) -> None:
    """A worker and its training process are gone with their host; the next worker waits until that is sure."""
    line = words(tmp_path, write_space(tmp_path, method="random", trials=2))
    process = start(line, seconds=0.3)
    until_trained(tmp_path, 4)
    claim, run = tmp_path / "study" / "claims" / "0000", tmp_path / "study" / "trials" / "0000"
    holder = json.loads((run / ".lock").read_text())
    for pid in (process.pid, holder["pid"]):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    (run / ".lock").write_text(json.dumps({**holder, "host": "lost-node"}))
    claim.write_text("lost-node")
    before = time.time() - STALE_SECONDS + 15  # a worker starts within this, also on a busy machine
    for path in (claim, *run.iterdir()):
        os.utime(path, (before, before))
    assert start(line).wait(60) == 0
    assert "trial 0: lost-node has given no sign of life" in said(tmp_path)
    assert [record.state for record in records(tmp_path)] == ["complete"] * 2
    assert sum(Counter(trained(tmp_path)).values()) <= 2 * 9 + 1  # it goes on from its last checkpoint


def test_failed_trials_are_recorded_and_end_nothing(tmp_path: Path) -> None:
    """A loss that diverges, and a recipe that is refused; one of three is best."""
    sizes = {"batch.tokens_per_step": [512, 2048], "batch.tokens_per_micro_batch": [512, 2048]}
    finished(tmp_path, method="random", trials=8, parameters={"optim.learning_rate": [10.0, 0.01], **sizes})
    found = records(tmp_path)
    reasons = {record.reason for record in found if record.state == "failed"}
    assert any("no finite gradient" in reason for reason in reasons)
    assert any("2048 exceeds batch.tokens_per_step, 512" in reason for reason in reasons)
    assert {record.state for record in found} == {"failed", "complete"}


def test_a_trial_that_is_killed_twice_before_a_step_has_failed(tmp_path: Path) -> None:
    starter = Starter(words=("sh", "-c", f"echo start >> {tmp_path}/starts; kill -9 $$"))
    trial = Trial(tmp_path, "loss", 1.0, starter)
    while (ended := trial.poll()) is None:
        time.sleep(0.01)
    message = "killed twice, the second time by SIGKILL after step 0 (out of memory?); see output.log"
    assert ended == Ended("failed", message)
    assert (tmp_path / "starts").read_text() == "start\n" * 2


def test_a_search_whose_trials_all_fail_says_so(tmp_path: Path) -> None:
    space = write_space(tmp_path, method="grid", trials=2, parameters={"optim.learning_rate": [10.0, 20.0]})
    assert start(words(tmp_path, space)).wait(60) == 64
    assert "all 2 trials failed; trial 0: step 1: 11 updates in a row had no finite gradient" in said(tmp_path)


def test_another_space_is_refused_in_the_same_study(tmp_path: Path) -> None:
    space = write_space(tmp_path, method="grid", trials=2, parameters={"optim.learning_rate": [0.1]})
    assert start(words(tmp_path, space)).wait(60) == 0
    write_space(tmp_path, method="grid", trials=2, parameters={"optim.learning_rate": [0.2]})
    assert start(words(tmp_path, space)).wait(60) == 64
    assert "holds another search: its space.yaml differs" in said(tmp_path)


@pytest.mark.parametrize(("share", "step"), [(0.3, 6), (0.5, 6)])
def test_a_promoted_trial_has_the_numbers_of_an_undisturbed_run(
    share: float, step: int, zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    """Stopped at the first validation from a share of its steps on, as at a rung, and resumed: bitwise the same."""
    run, stop = tmp_path / "run", {"run.stop_at_share": share}
    for _ in range(2):  # a second start trains nothing more
        assert set(zygote.run(workplace.arguments(run, **stop), tmp_path / "log").codes) == {0}
        reached = status(run)
        assert (reached["state"], reached["step"]) == ("preempted", step)
        assert reached["reason"] == "run.stop_at_share reached"
    assert set(zygote.run(workplace.arguments(run), tmp_path / "log").codes) == {0}
    assert weights(run) == weights(reference)
    for name in ("train/loss", "validation/loss", "train/learning_rate", "train/gradient_norm"):
        assert metrics(run, name) == metrics(reference, name)


def test_a_promoted_trial_goes_on_without_a_restart(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One curve in one run folder, no step twice, and the numbers of a run that was never stopped."""
    rates = {"optim.learning_rate": [1e-4, 1e-2, 1e-3]}
    space = write_space(tmp_path, method="grid", pruner="halving", reduction=3, rungs=2, parameters=rates)
    line = words(tmp_path, space, "--validation.every_steps", "3", "--validation.samples", "0")
    monkeypatch.setattr(train.search.__main__, "_finish", lambda study: None)
    assert main(line, starter=WarmStarter(zygote=zygote)) == 0
    leader = best(records(tmp_path), 1)
    assert leader is not None
    assert [record.steps for record in records(tmp_path)] == [3, 9, 3]
    run, alone = tmp_path / "study" / "trials" / "0001", tmp_path / "alone"
    recipe = ["--config", str(run / "recipe.yaml"), "--run.folder", str(alone)]
    assert set(zygote.run(recipe, tmp_path / "log").codes) == {0}
    assert weights(run, STEPS) == weights(alone, STEPS)
    for name in ("train/loss", "validation/loss"):
        assert metrics(run, name) == metrics(alone, name)
        assert [line["step"] for line in lines_of(run) if name in line] == list(metrics(alone, name))
    assert leader.value == min(list(metrics(alone, "validation/loss").values())[1:])


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_report_of_a_search(tmp_path: Path) -> None:
    """Trials with values, states and reasons, figures, importances; TensorBoard's table of what was chosen."""
    finished(tmp_path, report=True, pruner="halving", reduction=3, rungs=3, trials=6)
    study, found = tmp_path / "study", records(tmp_path)
    text = (study / "report.md").read_text(encoding="utf-8")
    leader = best(found, 1)
    assert leader is not None
    assert f"**Best: trial {leader.number}, validation loss {leader.value:.4g}: optim.learning_rate" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert sorted(int(row[0][2:]) for row in rows[1:7]) == list(range(6))
    assert {row[5] for row in rows[1:7]} == {"complete", "pruned"}
    assert "at rung 1 of 3 (11.1 % of its steps), step 1: not in the best 1/3" in text
    assert "| optim.beta1 | 0." in text
    assert f"    python -m train.cli train --config {study}/best.yaml\n" in text  # as the trials were started
    for name in ("curves", "importances", "parallel"):
        assert f"](report/{name}.png)" in text
        assert (study / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (study / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "<td>complete</td>" in page
    assert "<th>optim.<wbr>learning_<wbr>rate</th>" in page  # the head of a wide table may be divided
    assert "script" not in page
    written = b"".join(path.read_bytes() for path in study.rglob("tensorboard/0000/events.*"))
    assert all(word in written for word in (b"_hparams_/session_start_info", b"optim.learning_rate", b"best/loss"))


def test_the_report_tells_of_repeated_points_and_missing_importances(tmp_path: Path) -> None:
    """Two points; and the command that reproduces the best trial starts it as the search did."""
    launch = ("--accelerate", "cpu_ddp", "--num_processes", "2", "--model.trust_remote_code", "true")
    parameters = {"optim.learning_rate": [0.1, 0.01, 0.001]}
    finished(tmp_path, *launch, report=True, method="random", trials=5, seed=1, parameters=parameters)
    text = (tmp_path / "study" / "report.md").read_text(encoding="utf-8")
    (repeated,) = (record for record in records(tmp_path) if record.repeated is not None)
    assert f"all steps done; the first draw was that of trial {repeated.repeated} again" in text
    assert "## Importance of the parameters\n\nNone: there is only one parameter." in text
    command = f"python -m train.cli train --config {tmp_path}/study/best.yaml --accelerate cpu_ddp --num_processes 2"
    assert f"    {command} --model.trust_remote_code true\n" in text
    assert f"{command} --model.trust_remote_code true</code>" in (tmp_path / "study/report.html").read_text()


def test_the_grid_of_tinystories_is_one_search(zygote: Zygote, tmp_path: Path) -> None:
    """On a stand-in: epochs and share of the data, by perplexity, with the row of the untrained model."""
    line = ["recipes/qwen2-0.5b-tinystories.yaml", "recipes/cpu.yaml", "--space", "tinystories-grid"]
    line += ["--study", str(tmp_path / "study"), "--duration.max_steps", "null", "--validation.samples", "0"]
    assert main(line, starter=WarmStarter(zygote=zygote)) == 0
    text = (tmp_path / "study" / "report.md").read_text(encoding="utf-8")
    heads, _, *rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert heads[:4] == ["trial", "perplexity", "steps", "published"]
    assert [row[2:4] for row in rows] == [
        ["10", "2 epochs 90 %"],
        ["8", "2 epochs 60 %"],
        ["5", "1 epoch 90 %"],
        ["0", "-"],
    ]
    before = metrics(tmp_path / "study" / "trials" / "0000", "validation/perplexity")[0]
    assert rows[-1][1] == plain(before)
    assert rows[-1][4:] == ["untrained", "-", "the model before training"]


def test_over_and_underfitting_are_named(tmp_path: Path) -> None:
    def run(held_out: list[float], train: list[float]) -> Run:
        lines = [
            {"step": k + 1, "time": k, "train/loss": train[k], "validation/loss": value}
            for k, value in enumerate(held_out)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_run(tmp_path)

    assert fit_of(run([3, 2, 1, 1.5], [3, 2, 1, 0.5]), to_its_end=True) == "overfitting"
    assert fit_of(run([3, 2, 1, 1.5], [3, 2, 1, 1.5]), to_its_end=True) == ""  # it diverged
    assert fit_of(run([5, 4, 3, 2], [5, 4, 3, 2]), to_its_end=True) == "underfitting"
    assert fit_of(run([5, 4, 3, 2], [5, 4, 3, 2]), to_its_end=False) == ""
    assert fit_of(run([5, 2, 1.999, 1.998], [5, 2, 1.999, 1.998]), to_its_end=True) == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_search_with_the_real_trainer(ranks: int, zygote: Zygote, tmp_path: Path) -> None:
    """As one process or several; best.yaml trains again to the same numbers."""
    space = write_space(tmp_path, method="grid", trials=1, parameters={"optim.learning_rate": [1e-2]})
    launch = ["--accelerate", "cpu_ddp", "--num_processes", "2"] if ranks == 2 else []
    command = ["python", "-m", "train.search", *words(tmp_path, space, "--validation.samples", "0", *launch)]
    code, output = in_session(command, environment(), 200)
    assert code == 0, output
    (found,) = records(tmp_path)
    trial = tmp_path / "study" / "trials" / "0000"
    assert json.loads((trial / "run.json").read_text())["world_size"] == ranks
    assert found.value == min(list(metrics(trial, "validation/loss").values())[1:])
    assert found.steps == STEPS
    again, alone = tmp_path / "study" / "best.yaml", tmp_path / "alone"
    words_again = ["--config", str(again), "--run.folder", str(alone), "--merge.at_end", "false"]
    assert set(zygote.run(words_again, tmp_path / "log", "single" if ranks == 1 else "ddp").codes) == {0}
    for name in ("train/loss", "validation/loss"):
        assert metrics(alone, name) == metrics(trial, name)
