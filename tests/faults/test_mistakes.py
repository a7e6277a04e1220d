"""What a user does by mistake costs nothing: a mistyped command, Ctrl-C at any time, a run folder that is removed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support.fault_runs import (
    STEPS,
    Workplace,
    Zygote,
    finished,
    launch_ranks,
    leftovers,
    losses,
    rank_environment,
    status,
    until,
    weights,
)
from tests.support.training_runs import ROOT

UPDATE = "train.engine.loop:Loop._update"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(
    zygote: Zygote, words: list[str], log: Path, orders: list[dict[str, object]] | None = None
) -> tuple[int, str]:
    """One run of one process: exit code and output."""
    processes = zygote.run(words, log, orders=orders)
    (code,) = processes.codes
    assert code is not None
    return code, processes.output


def test_a_mistyped_command_leaves_a_run_as_it_was(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stops = [{"at": UPDATE, "nth": 3, "do": "SIGTERM"}]
    assert start(zygote, workplace.arguments(run), tmp_path / "first", stops)[0] == 0
    (run / "checkpoints" / "step-000009.tmp").mkdir()  # what only a start that goes on may tidy up
    (run / "checkpoints" / "step-000009.tmp" / "half").write_text("written")
    (run / "ranks").mkdir()
    (run / "ranks" / "rank-00000.stacks").write_text("of a hang before")
    preempted = contents(run)
    assert status(run)["state"] == "preempted"
    for mistake in ({"optim.beta1": 0.5}, {"data.max_length_tokens": 64}, {"run.resume": "never"}):
        code, output = start(zygote, workplace.arguments(run, **mistake), tmp_path / "mistyped")
        assert code == 64, output
        assert "ppo." not in output
        assert "Traceback" not in output
        assert contents(run) == preempted
    assert start(zygote, workplace.arguments(run), tmp_path / "on")[0] == 0
    assert losses(run) == losses(reference)

    done = contents(run)
    code, output = start(zygote, workplace.arguments(run, **{"optim.beta1": 0.5}), tmp_path / "mistyped-again")
    assert code == 64
    assert contents(run) == done
    code, output = start(zygote, workplace.arguments(run), tmp_path / "again")
    assert code == 0
    assert f"{run} is finished, after step {STEPS} (all steps done)" in output
    assert "--run.extend true" in output
    assert contents(run) == done


def test_a_start_that_fails_leaves_no_folder(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = start(
        zygote, workplace.arguments(run, **{"duration.max_steps": 3, "data.train": "[]"}), tmp_path / "a"
    )
    assert code == 64, output
    code, output = start(
        zygote,
        workplace.arguments(run),
        tmp_path / "b",
        [{"at": "train.checkpoint.manager:Checkpoints.resume", "do": "SIGINT"}],
    )
    assert code == 130
    assert output.splitlines()[-1] == "Stopped by SIGINT before the run had begun; nothing was changed."
    assert "Traceback" not in output
    assert not run.exists()


def test_a_second_ctrl_c_ends_the_run_at_once(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    orders = [
        {"at": UPDATE, "nth": 4, "do": "SIGINT"},
        {"at": "train.checkpoint.commit:_prepare", "nth": 2, "do": "SIGINT"},
        {"at": "train.checkpoint.commit:sync_tree", "nth": 2, "do": "sleep 60"},
    ]
    began = time.monotonic()
    code, output = start(
        zygote, workplace.arguments(run, **{"checkpoint.asynchronous": "false"}), tmp_path / "log", orders
    )
    assert code == 130
    assert time.monotonic() - began < 60
    assert "Press Ctrl-C again to end it now" in output
    assert finished(run) == [2]  # that of step 4 was under way
    assert start(zygote, workplace.arguments(run), tmp_path / "on")[0] == 0
    assert leftovers(run) == []
    assert losses(run) == losses(reference)


def test_ctrl_c_in_the_merge_leaves_it_to_the_same_command(
    zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {"merge.at_end": "true", "duration.max_steps": 2}
    orders = [{"at": "train.merge.steps:merge", "do": "SIGINT"}]
    code, output = start(zygote, workplace.arguments(run, **options), tmp_path / "log", orders)
    assert code == 130, output
    assert "Traceback" not in output
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 2)
    assert start(zygote, workplace.arguments(run, **options), tmp_path / "on")[0] == 0
    assert status(run)["state"] == "finished"
    assert (run / "merged" / "config.json").exists()


def test_a_run_whose_folder_is_removed_ends(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    orders = [{"at": UPDATE, "nth": 3, "do": f"remove {run}"}]
    options = {"checkpoint.asynchronous": "false"}
    code, output = start(zygote, workplace.arguments(run, **options), tmp_path / "log", orders)
    assert code == 73, output
    assert output.count("was removed or renamed while this run was writing into it. It ends after step 3") == 1
    assert "Traceback" not in output
    assert not run.exists()


def test_an_extended_run_is_the_long_one(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """Every loss, rate and bit, where the rate does not depend on the length; the rates in any case."""
    constant = {"optim.schedule": "constant", "optim.warmup_steps": 2}
    long, run, cosine = tmp_path / "long", tmp_path / "run", tmp_path / "cosine"
    assert start(zygote, workplace.arguments(long, **constant), tmp_path / "long.log")[0] == 0
    short = {**constant, "duration.max_steps": 5}
    assert start(zygote, workplace.arguments(run, **short), tmp_path / "short")[0] == 0
    code, output = start(zygote, workplace.arguments(run, **constant), tmp_path / "refused")
    assert code == 64
    assert f"duration.max_steps: 5 in the checkpoint, {STEPS} now" in output
    assert "--run.extend true" in output
    code, output = start(
        zygote, workplace.arguments(run, **constant, **{"run.extend": "true", "optim.beta1": 0.5}), tmp_path / "more"
    )
    assert code == 64  # not everything may change with the end
    code, output = start(zygote, workplace.arguments(run, **short, **{"run.extend": "true"}), tmp_path / "nothing")
    assert code == 0
    assert "is finished" in output
    code, output = start(
        zygote, workplace.arguments(run, **{**short, "duration.max_steps": 4, "run.extend": "true"}), tmp_path / "back"
    )
    assert code == 64
    assert "the new end, step 4, is not after step 5" in output
    code, output = start(zygote, workplace.arguments(run, **constant, **{"run.extend": "true"}), tmp_path / "extended")
    assert code == 0, output
    assert status(run)["step"] == STEPS
    assert losses(run) == losses(long)
    names = ("model.safetensors", "optimizer.safetensors")
    assert [weights(run)[name] for name in names] == [weights(long)[name] for name in names]
    assert json.loads((run / "run.json").read_text())["extended"] == [
        {"after_step": 5, "changed": [f"duration.max_steps: 5 in the checkpoint, {STEPS} now"]}
    ]

    short = {"duration.max_steps": 5, "optim.warmup_steps": 2}
    assert start(zygote, workplace.arguments(cosine, **short), tmp_path / "cosine-short")[0] == 0
    longer = {"run.extend": "true", "optim.warmup_steps": 2}
    assert start(zygote, workplace.arguments(cosine, **longer), tmp_path / "cosine-long")[0] == 0
    assert rates(cosine)[5:] == pytest.approx(planned(STEPS)[5:])
    assert rates(cosine)[:5] == pytest.approx(planned(5))


def rates(run: Path) -> list[float]:
    """The learning rate of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]


def planned(total: int) -> list[float]:
    from train.config import OptimConfig
    from train.engine.optimizer import learning_rate

    config = OptimConfig(learning_rate=1e-3, warmup_steps=2)
    return [learning_rate(step, total, config) for step in range(total)]


def test_data_and_model_may_move(zygote: Zygote, tmp_path: Path, reference: Path, workplace: Workplace) -> None:
    """What they are is told by their digests; where they lie is not."""
    home, run = tmp_path / "home", tmp_path / "run"
    here = Workplace(home)
    stops = [{"at": UPDATE, "nth": 3, "do": "SIGTERM"}]
    assert start(zygote, here.arguments(run), tmp_path / "first", stops)[0] == 0
    before = contents(run)
    shutil.move(home / "rows.jsonl", tmp_path / "umgezogen 数据.jsonl")
    shutil.move(home / "model", tmp_path / "base")
    here.rows, here.model = home / "rows.jsonl", home / "model"
    here.rows.write_text((tmp_path / "umgezogen 数据.jsonl").read_text().replace("plus", "minus"))
    shutil.copytree(tmp_path / "base", here.model)
    code, output = start(zygote, here.arguments(run), tmp_path / "other")
    assert code == 64
    assert "data: digest" in output
    assert contents(run) == before
    here.rows, here.model = tmp_path / "umgezogen 数据.jsonl", tmp_path / "base"
    code, output = start(zygote, here.arguments(run), tmp_path / "moved")
    assert code == 0, output
    assert losses(run) == losses(reference)
    names = ("model.safetensors", "optimizer.safetensors")
    assert [weights(run)[name] for name in names] == [weights(reference)[name] for name in names]


def end_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu", "cpu_ddp"])
def test_ctrl_c_through_the_launcher(config: str, workplace: Workplace, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the launcher and, where they are in its group, to the ranks."""
    run, log = tmp_path / "run", tmp_path / "log"
    slow = [{"at": UPDATE, "nth": 0, "do": "sleep 0.4"}]
    launcher = launch_ranks(workplace.arguments(run), log, slow, config=config)
    everyone = [launcher]
    try:
        until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 0)
        everyone += launcher.children(recursive=True)
        os.killpg(launcher.pid, signal.SIGINT)
        _, left = psutil.wait_procs(everyone, timeout=60)
        assert not left
    finally:
        end_all(everyone)
        launcher.wait(10)
    said = status(run)
    assert (said["state"], said["reason"], said["exit_code"]) == ("preempted", "SIGINT", 130), log.read_text()
    assert said["step"] == finished(run)[-1]
    assert leftovers(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
def test_ranks_end_with_their_launcher(early: bool, workplace: Workplace, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    slow = [{"at": UPDATE, "nth": 0, "do": "sleep 0.4"}]
    launcher = launch_ranks(workplace.arguments(run), log, slow)
    everyone = [launcher]
    try:
        if early:
            until(lambda: len(launcher.children()) == 2)
        else:
            until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 2)
        everyone += launcher.children(recursive=True)
        launcher.kill()
        _, left = psutil.wait_procs(everyone, timeout=20)
        assert not left
    finally:
        end_all(everyone)
        launcher.wait(10)
    assert log.read_text().count("the launcher") == 1
    if early:
        assert not (run / "status.json").exists()
    else:
        assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 1)


@pytest.mark.slow
def test_one_process_without_its_launcher_saves(workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = [{"at": UPDATE, "nth": 0, "do": "sleep 0.4"}]
    launcher = launch_ranks(workplace.arguments(run), tmp_path / "log", slow, config="cpu")
    everyone = [launcher]
    try:
        until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 0)
        everyone += launcher.children(recursive=True)
        launcher.terminate()
        _, left = psutil.wait_procs(everyone, timeout=60)
        assert not left
    finally:
        end_all(everyone)
        launcher.wait(10)
    assert (status(run)["state"], status(run)["step"]) == ("preempted", finished(run)[-1])


@pytest.mark.slow
def test_a_terminal_that_is_closed(workplace: Workplace, tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and whatever is written there afterwards fails."""
    run = tmp_path / "run"
    master, slave = os.openpty()
    slow = [{"at": UPDATE, "nth": 0, "do": "sleep 0.4"}]
    environment = rank_environment("single", 0, 0, slow) | {"PYTHONPATH": str(ROOT / "tests" / "support" / "plug")}
    process = psutil.Popen(
        [sys.executable, "train/main.py", *workplace.arguments(run)],
        cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    try:
        threading.Thread(target=drain, args=(os.dup(master),), daemon=True).start()
        until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 0)
        os.close(master)
        closed.set()
        assert process.wait(60) == 129
    finally:
        end_all([process])
    assert (status(run)["state"], status(run)["reason"], status(run)["exit_code"]) == ("preempted", "SIGHUP", 129)
    assert status(run)["step"] == finished(run)[-1]


closed = threading.Event()


def drain(terminal: int) -> None:
    """What a terminal emulator does until it is closed."""
    while not closed.is_set():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
