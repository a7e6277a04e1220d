"""F4 and F5: asked to stop in every way and at any time, a run saves once, leaves with 0 and goes on unchanged."""

from __future__ import annotations

import contextlib
import signal
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
    status,
    until,
    weights,
)

UPDATE = "train.engine.loop:Loop._update"
WAITING = {"checkpoint.asynchronous": "false"}  # for test_background.py asks the same while training goes on


def test_every_way_to_stop_and_go_on(zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_file = f"touch {run / 'STOP'}"
    lives = (  # orders, further options, reason, step after which the run stopped
        ([{"at": "train.checkpoint.manager:Checkpoints.resume", "do": "SIGTERM"}], {}, "SIGTERM", 0),
        ([{"at": UPDATE, "do": "SIGUSR1"}], {}, "SIGUSR1", 1),
        ([{"at": UPDATE, "do": stop_file}], {}, "STOP file", 2),
        ([{"at": "train.checkpoint.commit:sync_tree", "do": "SIGUSR2"}], WAITING, "SIGUSR2", 4),
        (
            [{"at": UPDATE, "do": "SIGTERM"}, {"at": "train.checkpoint.commit:_digest_share", "do": "SIGTERM"}],
            {},
            "SIGTERM",
            5,
        ),
        ([{"at": UPDATE, "do": "SIGINT"}], {}, "SIGINT", 6),
        ([{"at": UPDATE, "do": "SIGHUP"}], {}, "SIGHUP", 7),
        ([{"at": UPDATE, "nth": 0, "do": "sleep 1"}], {"run.stop_after_minutes": 0.01}, "deadline", 8),
    )
    codes = {"SIGINT": 130, "SIGHUP": 129}
    for life, (orders, options, reason, step) in enumerate(lives):
        processes = zygote.run(workplace.arguments(run, **options), tmp_path / f"life{life}", orders=orders)
        code = codes.get(reason, 0)
        assert processes.codes == [code], (reason, processes.output)
        assert "Traceback" not in processes.output
        said = status(run)
        assert (said["state"], said["reason"], said["exit_code"]) == ("preempted", reason, code)
        assert said["step"] == finished(run)[-1]
        # The deadline is checked between steps of a machine that may be slow; all else is exact.
        assert said["step"] in (7, 8) if reason == "deadline" else said["step"] == step
        assert leftovers(run) == []
        assert not (run / "STOP").exists()
    processes = zygote.run(workplace.arguments(run), tmp_path / "last")
    assert processes.codes == [0], processes.output
    assert status(run)["state"] == "finished"
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    rank: int, zygote: Zygote, workplace: Workplace, reference_of_two: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    orders = [{"at": UPDATE, "nth": 3, "rank": rank, "do": "SIGTERM"}]
    processes = zygote.run(workplace.arguments(run), tmp_path / "log", "ddp", orders)
    assert processes.codes == [0, 0], processes.output
    assert finished(run)[-1] == 3
    assert status(run)["state"] == "preempted"
    assert status(run)["step"] == 3
    assert status(run)["reason"] == ("SIGTERM" if rank == 0 else "another rank was asked to stop")
    assert_goes_on_as(reference_of_two, run, zygote, workplace, tmp_path)


def test_a_second_signal_to_either_rank_does_not_save_twice(
    zygote: Zygote, workplace: Workplace, reference_of_two: Path, tmp_path: Path
) -> None:
    """The first to one rank in a step; the second to both, while they save."""
    run, commit = tmp_path / "run", "train.checkpoint.commit"
    orders = [
        {"at": UPDATE, "nth": 3, "rank": 1, "do": "SIGTERM"},
        {"at": f"{commit}:_digest_share", "nth": 2, "do": "SIGTERM"},  # the first save was that of step 2
        {"at": f"{commit}:_digest_share", "nth": 2, "when": "after", "do": f"touch {tmp_path / 'second'}"},
        {"at": f"{commit}:_prepare", "nth": 3, "rank": 0, "do": f"touch {tmp_path / 'third'}"},
    ]
    processes = zygote.run(workplace.arguments(run), tmp_path / "log", "ddp", orders)
    assert processes.codes == [0, 0], processes.output
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 3)
    assert finished(run) == [2, 3]
    assert leftovers(run) == []
    assert (tmp_path / "second").exists()
    assert not (tmp_path / "third").exists(), "saved again"
    assert_goes_on_as(reference_of_two, run, zygote, workplace, tmp_path)


def assert_goes_on_as(reference: Path, run: Path, zygote: Zygote, workplace: Workplace, folder: Path) -> None:
    """The same command, on two ranks, ends where the run that nobody stopped ended: every loss and every bit."""
    processes = zygote.run(workplace.arguments(run), folder / "last", "ddp")
    assert processes.codes == [0, 0], processes.output
    assert "resumed from" in processes.output
    assert status(run)["state"] == "finished"
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


def send_to_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    """What a cluster does: every process of the job gets the signal."""
    for process in processes:
        process.send_signal(number)


def send_to_launcher(processes: list[psutil.Process], number: signal.Signals) -> None:
    """What a person does."""
    processes[0].send_signal(number)


@pytest.mark.slow
def test_through_the_launcher(zygote: Zygote, workplace: Workplace, reference_of_two: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher; SIGUSR1 to one told to pass it on; SIGUSR1 to all where the launcher ignores it."""
    run = tmp_path / "run"
    slow = [{"at": UPDATE, "nth": 0, "do": "sleep 0.4"}]
    passed_on = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    lives = (
        (signal.SIGTERM, send_to_launcher, {}),
        (signal.SIGUSR1, send_to_launcher, passed_on),
        (signal.SIGUSR1, send_to_all, {}),
    )
    before = 0
    for life, (number, send, variables) in enumerate(lives):
        ignore = ("bash", "-c", 'trap "" USR1; exec "$@"', "bash") if send is send_to_all else ()
        launcher = launch_ranks(workplace.arguments(run), tmp_path / f"life{life}.log", slow, ignore, **variables)
        everyone = [launcher]
        try:
            until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > before)  # noqa: B023
            everyone += launcher.children(recursive=True)
            assert len(everyone) >= 3
            send(everyone, number)
            _, left = psutil.wait_procs(everyone, timeout=60)
            assert not left, "processes were left behind"
        finally:
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.wait(10)
        said = status(run)
        text = (tmp_path / f"life{life}.log").read_text()
        assert said["state"] == "preempted", text
        assert before < said["step"] < STEPS, text
        assert said["step"] == finished(run)[-1]
        assert leftovers(run) == []
        before = said["step"]
    assert_goes_on_as(reference_of_two, run, zygote, workplace, tmp_path)
