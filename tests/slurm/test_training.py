"""Jobs that are preempted, requeued, cancelled or lose a node end with the bits of a run that nobody disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.conftest import Reference
from tests.support.eval_checkpoints import save
from tests.support.evaluations import alone
from tests.support.fault_runs import STEPS, Workplace, finished, status
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import assert_equal, job_script, plugged, slow, steps
from tests.support.training_runs import ROOT
from train.search.space import read_space
from train.search.study import Study

pytestmark = pytest.mark.timeout(1200)  # one takes half a minute on an idle machine


def as_recipe(options: list[str]) -> str:
    """Command-line options as a YAML file."""
    tree: dict[str, Any] = {}
    for name, value in zip(options[::2], options[1::2], strict=True):
        *way, key = name.removeprefix("--").split(".")
        inner = tree
        for part in way:
            inner = inner.setdefault(part, {})
        inner[key] = value if key in ("folder", "path", "cache_folder") else yaml.safe_load(value)
    return yaml.safe_dump(tree, allow_unicode=True)


def test_two_nodes_preempted(cluster: Cluster, workplace: Workplace, reference: Reference, run: Path) -> None:
    """2 nodes x 2 ranks, DDP; names that a shell would take apart; a job of more weight takes the nodes."""
    nodes = ("--nodes=2", "--gpus-per-node=2", "--job-name=a '$(touch X)' \"; touch X2")
    job = cluster.submit(*nodes, *job_script(workplace, run), **slow(1))
    cluster.until(lambda: steps(run) >= 2, [job])
    urgent = cluster.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=true")
    assert cluster.wait(urgent, job) == ["COMPLETED"] * 2, cluster.log(job)
    assert cluster.show(job)["Restarts"] == "1"
    log = cluster.log(job)
    assert "slurm: warned: the run saves and stops" in log
    assert "slurm: stopped and saved; requeued, restart 1" in log
    assert "4 processes, ddp" in log
    assert "continuing after step" in log
    assert_equal(run, reference("ddp", 4))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["run"]["folder"] == str(run)
    assert config["data"]["train"][0]["path"] == str(workplace.rows)


def test_zero_requeued_by_hand(cluster: Cluster, workplace: Workplace, reference: Reference, run: Path) -> None:
    """2 nodes x 2 ranks, ZeRO-2: `scontrol requeue` kills without a warning; it goes on from the last checkpoint."""
    script = job_script(workplace, run, "--accelerate", "zero2")
    job = cluster.submit("--nodes=2", "--gpus-per-node=2", *script, **slow(1))
    cluster.until(lambda: steps(run) >= 5, [job])
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job) == ["COMPLETED"], cluster.log(job)
    assert cluster.show(job)["Restarts"] == "1"
    assert "4 processes, zero-2" in cluster.log(job)
    assert "continuing after step" in cluster.log(job)
    assert_equal(run, reference("zero2", 4))
    assert not (ROOT / ".deepspeed_env").exists()


def test_the_time_limit_and_the_cap(cluster: Cluster, workplace: Workplace, reference: Reference, run: Path) -> None:
    """Warned by the limit, the run saves; not requeued beyond the cap, the same command goes on in another job."""
    script = job_script(workplace, run)
    job = cluster.submit("--signal=B:USR1@90", "--gpus-per-node=1", *script, **slow(10), MAX_REQUEUES="0")
    cluster.until(lambda: steps(run) >= 1, [job])
    minutes = int(cluster.show(job)["RunTime"].split(":")[1]) + 3  # the limit is 2 to 3 minutes away
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    assert cluster.wait(job) == ["FAILED"], cluster.log(job)
    assert cluster.show(job)["ExitCode"] == "75:0"
    assert "not requeued: it was restarted 0 times already (MAX_REQUEUES)" in cluster.log(job)
    assert status(run)["state"] == "preempted"
    assert 0 < status(run)["step"] == finished(run)[-1] < STEPS
    job = cluster.submit("--gpus-per-node=1", *script)
    assert cluster.wait(job) == ["COMPLETED"], cluster.log(job)
    assert_equal(run, reference("single", 1))


def test_nodes_lost(cluster: Cluster, workplace: Workplace, reference: Reference, run: Path) -> None:
    """First the node with the batch script and the lock is lost, then one of the others."""
    job = cluster.submit("--nodes=2", "--gpus-per-node=1", *job_script(workplace, run), **slow(1))
    cluster.until(lambda: steps(run) >= 3, [job])
    lost = cluster.show(job)["BatchHost"]
    cluster.kill_node(lost)
    cluster.until(lambda: status(run)["job"] == f"{job}.1" and steps(run) >= 6, [job])
    cluster.start_node(lost)
    nodes = [node for node in cluster.nodes if node != lost]
    other = next(node for node in nodes if node != cluster.show(job)["BatchHost"])
    cluster.kill_node(other)
    states = cluster.wait(job)
    cluster.start_node(other)
    assert states == ["COMPLETED"], cluster.log(job)
    assert cluster.show(job)["Restarts"] == "2"
    assert "taken over from process" in cluster.log(job)
    assert_equal(run, reference("ddp", 2))


def test_a_hang(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """The rank to blame is told from the one on the other node that waits for it; the job is not requeued."""
    script = job_script(workplace, run, run__hang_seconds=5)
    hang = plugged({"at": "train.engine.loop:Loop._agree", "nth": 5, "rank": 1, "do": "sleep 1000"})
    job = cluster.submit("--nodes=2", "--gpus-per-node=1", *script, **hang)
    assert cluster.wait(job, seconds=300) == ["FAILED"], cluster.log(job)
    log, said = cluster.log(job), status(run)
    assert (said["state"], said["rank"], said["exit_code"]) == ("failed", 1, 70)
    assert "rank 1 hangs in `data` at " in log
    assert "waiting: rank 0." in log
    assert "slurm: failed, not requeued. The cause is the first error above" in log
    assert cluster.show(job)["Restarts"] == "0"


def test_an_evaluation_warned(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """It is requeued, asks only what is not answered yet, and ends with the numbers of one that nobody disturbed."""
    model, rows = save(workplace.folder / "checkpoint", context_tokens=512), str(workplace.rows)
    words = ["--model", str(model), "--tasks", "perplexity", "--data", rows, "--precision", "fp32", "--out"]
    evaluate = ("--nodes=2", "--gpus-per-node=1", "slurm/eval.sh", *words)
    job = cluster.submit(*evaluate, run, **slow(0.5, "zerotune.inference.answer_cache:AnswerCache.write"))
    cluster.until(lambda: answers(run) >= 4, [job])
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job) == ["COMPLETED"], cluster.log(job)
    assert cluster.show(job)["Restarts"] == "1"
    assert "slurm: warned; the answers so far are kept; requeued, restart 1" in cluster.log(job)
    code, _, errors = alone(workplace.folder, *words, str(run.with_name("undisturbed")))
    assert code == 0, errors
    own, other = (json.loads((f / "result.json").read_text())["tasks"] for f in (run, run.with_name("undisturbed")))
    values = [[metric["estimates"][0]["value"] for metric in tasks[0]["metrics"]] for tasks in (own, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert answers(run) == answers(run.with_name("undisturbed"))


def answers(folder: Path) -> int:
    """How many answers the journal of an evaluation holds."""
    return sum(path.read_text().count("\n") for path in (folder / "journal").glob("*.jsonl"))


def test_one_run_folder_two_jobs_and_a_cancelled_chain(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """Of two jobs in one run folder one is refused; cancelled, the other saves, stays so, and ends its chain."""
    script = job_script(workplace, run)
    chain = ["bash", "slurm/chain.sh", "--gpus-per-node=1", f"--output={cluster.folder}/%j.out", *map(str, script[1:])]
    said = cluster.run(*chain, "--", "--tasks", "perplexity", "--data", str(workplace.rows), **slow(3))
    train, merge, evaluate = (word.rstrip(",\n") for word in said.split() if word.strip(",\n").isdigit())
    other = cluster.submit("--gpus-per-node=1", *script, **slow(3))
    both = {train, other}
    cluster.until(lambda: "FAILED" in [cluster.show(job)["JobState"] for job in both], both)
    refused = next(job for job in both if cluster.show(job)["JobState"] == "FAILED")
    (holder,) = both - {refused}
    assert "in use by process" in cluster.log(refused), cluster.log(refused)
    assert "slurm: failed, not requeued. The cause is the first error above" in cluster.log(refused)
    cluster.until(lambda: steps(run) >= 1, [holder])
    cluster.run("scancel", holder)
    assert cluster.wait(holder, merge, evaluate) == ["CANCELLED"] * 3, cluster.log(holder)
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", [holder])
    assert cluster.show(holder)["Restarts"] == "0"
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "SIGTERM"), cluster.log(holder)
    assert 0 < status(run)["step"] == finished(run)[-1]


def test_a_chain(cluster: Cluster, workplace: Workplace, run: Path) -> None:
    """Train, merge and evaluate on two nodes with one command."""
    script = job_script(workplace, run, duration__max_steps=2)[1:]
    chain = ["bash", "slurm/chain.sh", "--nodes=2", "--gpus-per-node=1", f"--output={cluster.folder}/%j.out"]
    evaluation = ("--", "--tasks", "perplexity", "--data", str(workplace.rows), "--max_rows", "8")
    said = cluster.run(*chain, *map(str, script), *evaluation)
    jobs = [word.rstrip(",\n") for word in said.split() if word.strip(",\n").isdigit()]
    assert cluster.wait(*jobs) == ["COMPLETED"] * 3, "\n".join(map(cluster.log, jobs))
    assert (run / "merged" / "model.safetensors").is_file()
    result = json.loads((run / "evaluation" / "result.json").read_text(encoding="utf-8"))
    assert result["settings"]["ranks"] == 2


def test_a_sweep(cluster: Cluster, workplace: Workplace, run: Path, tmp_path: Path) -> None:
    """Each line of a file in a folder of its own; quotes group the words of a line, and nothing is expanded."""
    lines = tmp_path / "overrides $(touch X).txt"
    lines.write_text("--optim.learning_rate 1e-3\n--optim.learning_rate 2e-3 --data.system_prompt '$(touch X) \"*\"'\n")
    recipe = workplace.folder / "sweep.yaml"
    recipe.write_text(as_recipe(workplace.arguments(run, duration__max_steps=2)), encoding="utf-8")
    count = cluster.folder / "count"
    site = cluster.site("once", f"echo read >>{count}\n: $NOT_SET_ANYWHERE\n")
    sweep = ("--array=1-2", "--gpus-per-node=1", "slurm/sweep.sh", "--accelerate", "cpu", recipe, lines)
    job = cluster.submit(*sweep, ZEROTUNE_SITE=site)
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", [job])
    configs = {}
    for number in (1, 2):
        folder = run.with_name(f"{run.name}-{number}")
        assert status(folder)["state"] == "finished"
        configs[number] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert [configs[number]["optim"]["learning_rate"] for number in (1, 2)] == [1e-3, 2e-3]
    assert configs[2]["data"]["system_prompt"] == '$(touch X) "*"'
    assert count.read_text() == "read\n" * 2  # the site file, once for each task


def test_a_search(cluster: Cluster, workplace: Workplace, run: Path, tmp_path: Path) -> None:
    """Two tasks share one study; one that is warned makes its trial save, and is requeued to the end."""
    space = tmp_path / "space.yaml"
    space.write_text("method: grid\nparameters:\n  optim.learning_rate: [1e-3, 2e-3, 3e-3]\n", encoding="utf-8")
    recipe = workplace.folder / "search.yaml"
    recipe.write_text(as_recipe(workplace.arguments(run, validation__every_steps=2)), encoding="utf-8")
    study = run.with_name(f"{run.name}-search")
    sweep = ("--array=1-2", "--gpus-per-node=1", "slurm/sweep.sh", "--accelerate", "cpu", recipe, "--space", space)
    job = cluster.submit(*sweep, **slow(1))
    cluster.until(lambda: steps(study / "trials" / "0000") >= 1, [job])
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", [job])
    found = Study(study, read_space(space)).records()
    assert [(record.state, record.steps) for record in found] == [("complete", STEPS)] * 3
    assert (study / "report.md").is_file()
