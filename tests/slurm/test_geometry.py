"""What the launchers are given, and what becomes of a sweep's tasks: with stubs in their place. Nothing trains here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster

pytestmark = pytest.mark.timeout(600)  # seconds on an idle machine

LAUNCHER = 'echo "launched with ${SLURM_GPUS_ON_NODE:-0} GPUs, $SLURM_CPUS_ON_NODE cores: $*"'
# sbatch's options: (GPUs, cores) of a node, accelerate config, all ranks.
ASKED = {
    "--gres=gpu:2": (2, 1, "ddp", 2),
    "--gpus=2 --cpus-per-task=4": (2, 4, "ddp", 2),
    "--gpus-per-node=2 --exclusive": (2, 4, "ddp", 2),
    "--nodes=2 --gpus-per-node=2 --exclusive": (2, 4, "ddp", 4),
    "--nodes=2 --gpus-per-node=1 --exclusive": (1, 4, "ddp", 2),
    "--nodes=2 --gpus-per-node=2 --cpus-per-gpu=2": (2, 4, "ddp", 4),
    "--nodes=2 --gpus-per-node=2 --ntasks-per-node=2": (2, 2, "ddp", 4),
    "--gpus-per-task=1 --ntasks-per-node=2": (2, 2, "ddp", 2),
    "--nodes=2 --gpus-per-task=1 --ntasks-per-node=2": (2, 2, "ddp", 4),
    "--gpus-per-task=1 --ntasks=1": (1, 1, "one_gpu", 1),
    "--ntasks-per-gpu=1 --gpus=2": (2, 2, "ddp", 2),
    "--nodes=2 --ntasks-per-node=2": (0, 2, "cpu_ddp", 4),
    "--cpus-per-task=4": (0, 4, "cpu", 1),
}


def stubs(cluster: Cluster, folder: Path, launcher: str) -> str:
    """A site file by which `accelerate` is that shell script, and `python` tells the run folder: the last word if it
    is one, else the recipe's.
    """
    say = 'echo "[zerotune: $told :zerotune]"'
    scripts = {"python": f"told=${{!#}}; case $told in '{folder}'/*) ;; *) told='{folder}/run' ;; esac; {say}"}
    for name, script in (scripts | {"accelerate": launcher}).items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return cluster.site(folder.name, f"PATH='{folder}':$PATH\n")


def test_what_is_asked_for_is_what_the_launchers_get(cluster: Cluster, tmp_path: Path) -> None:
    site = stubs(cluster, tmp_path, LAUNCHER)
    script = ("slurm/job.sh", "recipes/demo.yaml")
    jobs = {asked: cluster.submit("--time=20", *asked.split(), *script, ZEROTUNE_SITE=site) for asked in ASKED}
    cluster.wait(*jobs.values())
    for asked, (gpus, cores, config, ranks) in ASKED.items():
        log = cluster.log(jobs[asked])
        launched = re.findall(
            r"^\d: launched with (\d) GPUs, (\d) cores: .*/(\w+)\.yaml --num_processes (\d)", log, re.MULTILINE
        )
        expected = (str(gpus), str(cores), config, str(ranks))
        assert launched == [expected] * (2 if "--nodes=2" in asked else 1), (asked, log)


def test_a_site_may_say_where_the_nodes_meet(cluster: Cluster, tmp_path: Path) -> None:
    site = Path(stubs(cluster, tmp_path, LAUNCHER))
    with site.open("a") as file:
        file.write("HEAD_ADDRESS=10.1.2.3\nHEAD_PORT=41234\n")
    job = cluster.submit("--nodes=2", "--time=20", "slurm/job.sh", "recipes/demo.yaml", ZEROTUNE_SITE=str(site))
    cluster.wait(job)
    assert cluster.log(job).count("--main_process_ip 10.1.2.3 ") == 2
    assert cluster.log(job).count("--main_process_port 41234 ") == 2


def test_the_cap_counts_what_slurm_itself_starts_again(cluster: Cluster, tmp_path: Path) -> None:
    site = stubs(cluster, tmp_path, "echo launched; sleep 100")
    script = ("--time=20", "slurm/job.sh", "recipes/demo.yaml")
    job = cluster.submit(*script, ZEROTUNE_SITE=site, MAX_REQUEUES="0")
    cluster.until(lambda: "launched" in cluster.log(job), [job])
    cluster.run("scontrol", "requeue", job)
    cluster.wait(job)
    assert (cluster.show(job)["ExitCode"], cluster.show(job)["Restarts"]) == ("75:0", "1"), cluster.log(job)
    assert "slurm: this is restart 1, more than MAX_REQUEUES (0) allows" in cluster.log(job)
    assert cluster.log(job).count("launched") == 1


# The first start of the second task is stopped. It says so as the trainer does, in the folder that is the last word.
STOPPED_ONCE = r"""
state=finished
[ "$SLURM_ARRAY_TASK_ID" != 2 ] || [ -n "${SLURM_RESTART_COUNT-}" ] || state=preempted
mkdir -p "${!#}"
printf '{\n "state": "%s",\n "job": "%s",\n "time": ""\n}\n' \
    "$state" "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" >"${!#}/status.json"
"""


def test_a_task_of_a_sweep_is_requeued_alone(cluster: Cluster, tmp_path: Path) -> None:
    lines = tmp_path / "overrides.txt"
    lines.write_text("--a 1\n--a 2\n--a 3\n", encoding="utf-8")
    sweep = ("--array=1-3", "--time=20", "slurm/sweep.sh", "recipes/demo.yaml", lines)
    job = cluster.submit(*sweep, ZEROTUNE_SITE=stubs(cluster, tmp_path, STOPPED_ONCE))
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", [job])
    shown = cluster.run("scontrol", "-o", "show", "job", job)
    states = re.findall(r"ArrayTaskId=(\d) .* JobState=(\w+) .* Restarts=(\d) ", shown)
    assert sorted(states) == [("1", "COMPLETED", "0"), ("2", "COMPLETED", "1"), ("3", "COMPLETED", "0")], shown
