"""What cannot work is refused with one message, before any rank starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace
from tests.support.slurm_cluster import Cluster
from tests.support.training_runs import BIN, ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TRAIN = ("slurm/job.sh", "recipes/demo.yaml")


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} == {
        "chain", "common", "eval", "job", "merge", "node", "site.example", "sweep",
    }  # fmt: skip


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    subprocess.run(["shellcheck", "--external-sources", *map(str, SCRIPTS)], cwd=ROOT, check=True)


WITHOUT_JOB = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "ZEROTUNE_SITE"))}


def by_hand(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script as on a login node, where no cluster is needed to refuse it."""
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env=WITHOUT_JOB | variables, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", ["job", "eval", "merge", "sweep"])
def test_a_batch_script_without_a_job(script: str) -> None:
    done = by_hand(f"slurm/{script}.sh", "recipes/demo.yaml", "README.md")
    said = f"slurm: this is not a SLURM job: start the script with sbatch slurm/{script}.sh, not with bash\n"
    assert (done.returncode, done.stdout, done.stderr) == (64, "", said)


def test_a_site_file(tmp_path: Path) -> None:
    """One that is not there is named; what its last line ends with means nothing."""
    site = tmp_path / "site.sh"
    done = by_hand("slurm/chain.sh", ZEROTUNE_SITE=str(site))
    assert (done.returncode, done.stderr) == (64, f"slurm: ZEROTUNE_SITE: cannot read {site}\n")
    site.write_text("[ -d /no/such/folder ] && module load cuda\n")
    done = by_hand("slurm/chain.sh", ZEROTUNE_SITE=str(site))
    assert (done.returncode, done.stderr.split(" [")[0]) == (64, "slurm: bash slurm/chain.sh")


def test_what_cannot_work_is_refused_at_once(cluster: Cluster, workplace: Workplace, tmp_path: Path) -> None:
    typo = workplace.folder / "typo.yaml"
    typo.write_text("model:\n  pth: x\ndata:\n  train: [{path: x.jsonl, format: qa}]\n", encoding="utf-8")
    lines = tmp_path / "overrides.txt"
    lines.write_text("--optim.learning_rate 1e-4\n", encoding="utf-8")
    open_quote, empty = tmp_path / "quote.txt", tmp_path / "empty.txt"
    open_quote.write_text("\n--optim.learning_rate 1e-4 --data.system_prompt don't do --this\n", encoding="utf-8")
    empty.touch()
    single = tmp_path / "single.yaml"
    single.write_text("distributed_type: 'NO'\n", encoding="utf-8")
    cases = (
        (["--nodes=2", "--gpus=3", *TRAIN], "different numbers of GPUs (1, 2)"),
        (["--gpus-per-node=2", "--ntasks-per-node=3", *TRAIN], "3 tasks but 2 GPUs on each node"),
        (["--nodes=2", "--exclusive", *TRAIN], "did not ask for them: use --gpus-per-node=2"),
        (["--nodes=2", "--ntasks=3", *TRAIN], "different numbers of tasks (2,1)"),
        (
            ["slurm/job.sh", "--accelerate", "zero9", "recipes/demo.yaml"],
            "there is no zero9; known are cpu cpu_ddp ddp",
        ),
        (["--gpus-per-node=2", "slurm/job.sh", "--accelerate", "one_gpu", "recipes/demo.yaml"], "has 2 ranks (1 nodes"),
        (["slurm/job.sh", "--accelerate=zero9", "recipes/demo.yaml"], "there is no zero9"),
        (["slurm/job.sh", "--accelerate"], "--accelerate needs a name"),
        (["--gpus-per-node=2", "slurm/job.sh", "--accelerate", single, "recipes/demo.yaml"], "has 2 ranks (1 nodes"),
        (["slurm/job.sh", "recipes/none.yaml"], "there is no recipe recipes/none.yaml"),
        (["slurm/job.sh", typo], f"{typo}:2: unknown key model.pth"),
        (["slurm/job.sh", "recipes/demo.yaml", "--optim.learning_rat", "1"], "learning_rate"),
        (["--chdir=/tmp", ROOT / "slurm" / "job.sh", "recipes/demo.yaml"], "submit from ZeroTune's folder"),
        (["slurm/sweep.sh", "recipes/demo.yaml", lines], "a sweep needs a job array: sbatch --array=1-1"),
        (["--array=2", "slurm/sweep.sh", "recipes/demo.yaml", lines], "has no line 2: sbatch --array=1-1"),
        (["--array=0", "slurm/sweep.sh", "recipes/demo.yaml", lines], "has no line 0: sbatch --array=1-1"),
        (["--array=1", "slurm/sweep.sh", "recipes/demo.yaml", tmp_path / "none.txt"], "there is no file"),
        (["--array=1", "slurm/sweep.sh", "recipes/demo.yaml", empty], f"{empty} is empty"),
        (["--array=1", "slurm/sweep.sh", "recipes/demo.yaml", open_quote], f"{open_quote}:1: an empty line"),
        (["--array=2", "slurm/sweep.sh", "recipes/demo.yaml", open_quote], f"{open_quote}:2: a quote is not closed"),
    )
    jobs = [cluster.submit("--time=5", *words) for words, _ in cases]
    states = cluster.wait(*jobs)
    for job, state, (words, message) in zip(jobs, states, cases, strict=True):
        log = cluster.log(job)
        assert state == "FAILED", (words, log)
        assert cluster.show(job)["ExitCode"] == "64:0", (words, log)
        assert message in log, (words, log)
        said = [line for line in log.splitlines() if not re.match(r"srun: (error|warning|Job |Step )", line)]
        assert len(said) == message.count("\n") + 1, (words, log)


CHAINS = {
    "--nodes 2 recipes/demo.yaml -- --tasks qa": "there is no recipe 2; sbatch's options come first, each as one word",
    "recipes/dem.yaml -- --tasks qa": "recipes/dem.yaml: there is no such recipe; did you mean recipes/demo.yaml?",
    "recipes/demo.yaml -- --tasks gsm8": "unknown task gsm8; did you mean gsm8k?",
    "recipes/demo.yaml -- --tasks qa --dta x.jsonl": "unknown option --dta; did you mean --data?",
    "recipes/demo.yaml --tasks qa": "bash slurm/chain.sh [sbatch's options] recipes/NAME.yaml",
}


@pytest.mark.parametrize("words", CHAINS)
def test_a_chain_is_looked_at_before_it_is_submitted(words: str) -> None:
    """Also its evaluation, which would fail only after the training."""
    done = by_hand("slurm/chain.sh", *words.split(), PATH=f"{BIN}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (64, "")
    assert CHAINS[words] in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_launcher_that_starts_fewer_ranks_is_caught(cluster: Cluster, workplace: Workplace) -> None:
    """Accelerate starts one process for MULTI_CPU and says nothing; the ranks know how many they must be."""
    config = workplace.folder / "mine.json"
    config.write_text('{"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "use_cpu": true}')
    run = workplace.folder / "alone"
    words = [workplace.folder / "recipe.yaml", *workplace.arguments(run)]
    job = cluster.submit("--gpus-per-node=2", "slurm/job.sh", "--accelerate", config, *words)
    assert cluster.wait(job) == ["FAILED"]
    assert cluster.log(job).count("2 processes were launched, but this one belongs to a group of 1") == 1
    assert not (run / "checkpoints").exists()


def test_a_chain_that_is_not_taken_whole_leaves_nothing(cluster: Cluster, workplace: Workplace) -> None:
    """The merge gets one node: too little for GPUs that were not asked for per node."""
    words = ["--nodes=2", "--gpus=4", f"--output={cluster.folder}/%j.out", "--accelerate", "ddp"]
    script = [str(workplace.folder / "recipe.yaml"), *workplace.arguments(workplace.folder / "chain")]
    answer = subprocess.run(
        ["bash", "slurm/chain.sh", *words, *script, "--", "--tasks", "qa"],
        cwd=ROOT, env=cluster.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (answer.returncode, answer.stdout) == (64, ""), answer.stderr
    said = [line for line in answer.stderr.splitlines() if line.startswith("slurm: ")]
    assert len(said) == 1
    (train,) = re.findall(r"^slurm: sbatch refused a job of the chain, .* cancelled: ([0-9]+)$", said[0])
    assert cluster.wait(train) == ["CANCELLED"]
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", [train])
