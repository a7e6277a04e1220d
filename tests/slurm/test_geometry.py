"""However sbatch is asked, each node's launcher gets all GPUs and cores of its node. Nothing trains here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

# In place of the real ones: the run folder, and what a launcher finds.
STUBS = {
    "python": "echo {folder}/run",
    "accelerate": 'echo "launched with ${{SLURM_GPUS_ON_NODE:-0}} GPUs, $SLURM_CPUS_ON_NODE cores: $*"',
}
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


@pytest.mark.timeout(600)
def test_what_is_asked_for_is_what_the_launchers_get(cluster: Cluster, tmp_path: Path) -> None:
    for name, line in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line.format(folder=tmp_path)}\n")
        (tmp_path / name).chmod(0o755)
    site = cluster.site("stubs", f"PATH='{tmp_path}':$PATH\n")
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
