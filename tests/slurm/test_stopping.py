"""Warnings, limits, signals and STOP files: what is requeued, what is refused, and what stays stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.conftest import Reference
from tests.support.eval_checkpoints import save
from tests.support.fault_runs import Workplace, status
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import assert_equal, job_script, slow, steps

pytestmark = pytest.mark.timeout(1200)  # one takes less than a minute on an idle machine

SHORT = "the time limit is too short for the warning (--signal), the start and {}: ask for more --time"
BY_HAND = "slurm: stopped by a STOP file that this job did not write: not requeued"


def test_warned_before_the_first_step(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """By the limit, before and after the launch: refused, or it would be so for ever; an evaluation before its first
    answer, too. By somebody: requeued, even where the controller does not answer at first.
    """
    busy = cluster.folder / "busy"
    at_once = cluster.site("at-once", "sleep 35\n")  # SLURM looks at the limits every 30 s
    by_hand = cluster.site(
        "by-hand",
        'echo here\n[ -n "${SLURM_RESTART_COUNT-}" ] || sleep 5\n'
        f'squeue() {{ if [ -e {busy} ]; then command squeue "$@"; else touch {busy} && return 1; fi; }}\n',
    )
    runs = [run.with_name(f"{run.name}-{number}") for number in range(3)]
    scripts = [["--gpus-per-node=1", *job_script(workplace, each, duration__max_steps=2)] for each in runs]
    warned = cluster.submit(*scripts[2], ZEROTUNE_SITE=by_hand)
    early = cluster.submit("--time=10", *scripts[0], ZEROTUNE_SITE=at_once)
    late = cluster.submit("--time=10", *scripts[1], **slow(25, "train.checkpoint.manager:Checkpoints.resume"))
    model, rows = save(workplace.folder / "unheard", context_tokens=512), str(workplace.rows)
    words = ["--model", model, "--tasks", "perplexity", "--data", rows, "--out", f"{run}-out"]
    mute = slow(40, "zerotune.inference.answer_cache:AnswerCache.write")
    answers = cluster.submit("--time=2", "--gpus-per-node=1", "slurm/eval.sh", *words, **mute)
    cluster.until(lambda: "here" in cluster.log(warned), [warned])
    cluster.run("scancel", "--batch", "--signal=USR1", warned)
    assert cluster.wait(early, late, answers, warned) == ["FAILED"] * 3 + ["COMPLETED"], cluster.log(warned)
    for job, least in ((early, "one step"), (late, "one step"), (answers, "one answer")):
        assert (cluster.show(job)["ExitCode"], cluster.show(job)["Restarts"]) == ("64:0", "0"), cluster.log(job)
        assert SHORT.format(least) in cluster.log(job)
    assert not runs[0].exists()
    assert (status(runs[1])["state"], status(runs[1])["step"]) == ("preempted", 0)
    assert cluster.show(warned)["Restarts"] == "1"
    assert "slurm: warned before the start; requeued, restart 1" in cluster.log(warned)
    assert status(runs[2])["state"] == "finished"


def test_stop_files(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """That of a script which was killed stops nobody; a person's ends the job: while it waits, and beside a warning."""
    waits, warned = run.with_name(f"{run.name}-waits"), run.with_name(f"{run.name}-warned")
    waits.mkdir()
    (waits / "STOP").write_text("by job 999999\n")
    first = cluster.submit("--gpus-per-node=1", *job_script(workplace, waits, run__stop_after_minutes=0.01))
    second = cluster.submit("--gpus-per-node=1", *job_script(workplace, warned), **slow(3))
    cluster.until(lambda: cluster.show(first)["Restarts"] == "1", [first])
    assert (status(waits)["state"], status(waits)["reason"]) == ("preempted", "deadline")
    (waits / "STOP").touch()
    cluster.until(lambda: steps(warned) >= 1, [second])
    (warned / "STOP").touch()
    cluster.run("scancel", "--batch", "--signal=USR1", second)
    assert cluster.wait(first, second) == ["FAILED"] * 2, cluster.log(first) + cluster.log(second)
    for job, folder, restarts in ((first, waits, "1"), (second, warned, "0")):
        assert (cluster.show(job)["ExitCode"], cluster.show(job)["Restarts"]) == ("75:0", restarts), cluster.log(job)
        assert BY_HAND in cluster.log(job)
        assert (status(folder)["state"], status(folder)["reason"]) == ("preempted", "STOP file")
        assert not (folder / "STOP").exists()


def test_sigterm_to_every_process(cluster: Cluster, workplace: Workplace, reference: Reference, run: Path) -> None:
    """What a preemption with a grace time sends; one rank has another launcher than two."""
    runs = {"single": run.with_name(f"{run.name}-1"), "ddp": run.with_name(f"{run.name}-2")}
    jobs = {
        kind: cluster.submit(f"--gpus-per-node={ranks}", *job_script(workplace, runs[kind]), **slow(0.5))
        for ranks, kind in enumerate(runs, 1)
    }
    for kind, job in jobs.items():
        cluster.until(lambda: steps(runs[kind]) >= 2, [job])  # noqa: B023
        cluster.run("scancel", "--signal=TERM", job)
    assert cluster.wait(*jobs.values()) == ["COMPLETED"] * 2, "".join(map(cluster.log, jobs.values()))
    for ranks, (kind, job) in enumerate(jobs.items(), 1):
        assert cluster.show(job)["Restarts"] == "1"
        assert "slurm: stopped and saved; requeued, restart 1" in cluster.log(job)
        assert "continuing after step" in cluster.log(job)
        assert_equal(runs[kind], reference(kind, ranks))
    # Here the rank outlives a launcher that dies; where a cgroup holds them it would be killed.
    assert "Terminated" not in cluster.log(jobs["single"])
