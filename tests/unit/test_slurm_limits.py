"""What a job is not started again for, whoever starts it; and what a site may print. Stubs stand in for SLURM."""

from __future__ import annotations

import re
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.fault_runs import until
from tests.support.slurm_stubs import Stubs
from tests.support.training_runs import ROOT

RECIPE = "recipes/demo.yaml"
# The words of each batch script, as a user gives them.
SCRIPTS = {
    "job": ["slurm/job.sh", RECIPE],
    "eval": ["slurm/eval.sh", "--model", "model", "--tasks", "qa", "--data", "rows.jsonl"],
    "sweep": ["slurm/sweep.sh", RECIPE, "README.md"],
    "merge": ["slurm/merge.sh", "run", "merged"],
}
# Writes so many answers, and ends as an evaluation does that is asked to.
EVALUATION = """touch "$STUBS/started"
[ -z "$SAYS" ] || { mkdir -p "$OUT/journal" && echo "$SAYS" >>"$OUT/journal/$$.jsonl"; }
until [ -e "$STUBS/cancelled" ]; do sleep 0.02; done
exit 1
"""


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path / "stubs")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_cap_counts_every_start(script: str, stubs: Stubs) -> None:
    """Also those that SLURM or a person ordered."""
    variables = {"SLURM_RESTART_COUNT": "4", "MAX_REQUEUES": "3", "SLURM_ARRAY_TASK_ID": "1"}
    assert stubs.run(*SCRIPTS[script], **variables) == 75, stubs.said
    said = "slurm: this is restart 4, more than MAX_REQUEUES (3) allows. The same command resumes from there"
    assert stubs.said.startswith(said)
    assert stubs.said.count("\n") == 1
    assert stubs.launched is None


def test_the_last_start_that_is_allowed(stubs: Stubs) -> None:
    assert stubs.run(*SCRIPTS["job"], SLURM_RESTART_COUNT="3", MAX_REQUEUES="3") != 75, stubs.said
    assert stubs.launched


@pytest.mark.parametrize("cap", ["many", "-1", "1e3", "10000000000", " ", "1\n2"])
def test_a_cap_that_is_no_number(cap: str, stubs: Stubs) -> None:
    """It would compare with nothing, and so be none."""
    for words in SCRIPTS.values():
        assert stubs.run(*words, MAX_REQUEUES=cap, SLURM_ARRAY_TASK_ID="1") == 64, stubs.said
        assert stubs.said == f"slurm: MAX_REQUEUES must be a whole number, not '{cap}'\n"
    (stubs.folder / "site.sh").write_text("MAX_REQUEUES=\n")
    assert stubs.run(*SCRIPTS["job"]) == 64, stubs.said
    assert stubs.said == "slurm: MAX_REQUEUES must be a whole number, not ''\n"


def evaluated(stubs: Stubs, out: Path, answer: str, minutes_left: int, *options: str, preempted: str = "None") -> int:
    """An evaluation that is warned while it runs; the job's exit code."""
    ends = datetime.now() + timedelta(minutes=minutes_left)
    shown = f"JobId=4711 PreemptTime={preempted} EndTime={ends.isoformat(timespec='seconds')} NumNodes=1\n"
    (stubs.folder / "job").write_text(shown)
    (stubs.folder / "training").write_text(EVALUATION)
    words = [*SCRIPTS["eval"], "--out", out, *options]
    script = stubs.start(*words, SAYS=answer, OUT=str(out))
    try:
        until(lambda: (stubs.folder / "started").exists() and (not answer or any((out / "journal").glob("*"))), 20)
        script.send_signal(signal.SIGUSR1)
        return script.wait(60)
    finally:
        script.kill()


SHORT = "slurm: the time limit is too short for the warning (--signal), the start and one answer: ask for more --time\n"


@pytest.mark.parametrize("options", [[], ["--resume", "never"]])
def test_an_evaluation_that_gets_nowhere_before_its_limit(options: list[str], stubs: Stubs, tmp_path: Path) -> None:
    """Requeued, it would be warned there again. What `--resume never` has answered helps the next start as little."""
    out = tmp_path / "out"
    (out / "journal").mkdir(parents=True)
    (out / "journal" / "before.jsonl").write_text("{}\n")  # answers of an earlier start are no progress of this one
    assert evaluated(stubs, out, "{}" if options else "", 2, *options) == 64, stubs.said
    assert stubs.said.endswith(SHORT)
    assert not stubs.requeued


@pytest.mark.parametrize(
    ("answer", "minutes_left", "preempted"), [("{}", 2, "None"), ("", 120, "None"), ("", 2, "2030-01-01T00:00:00")]
)
def test_an_evaluation_is_requeued(
    answer: str, minutes_left: int, preempted: str, stubs: Stubs, tmp_path: Path
) -> None:
    """Where it has answered something, and where the warning is somebody's, or a preemption's."""
    assert evaluated(stubs, tmp_path / "$(touch X) \n out", answer, minutes_left, preempted=preempted) == 0, stubs.said
    assert "slurm: warned; the answers so far are kept; requeued, restart 1" in stubs.said
    assert stubs.requeued


def test_a_mistaken_evaluation_starts_no_rank(stubs: Stubs) -> None:
    assert stubs.run(*SCRIPTS["eval"], "--dta", "x") == 64
    assert "unknown option --dta; did you mean --data?" in stubs.said
    assert stubs.launched is None


@pytest.mark.parametrize("script", ["job", "eval", "sweep"])
def test_what_a_site_prints_is_no_answer(script: str, stubs: Stubs, tmp_path: Path) -> None:
    """A prolog that greets, also without an end of line, and a $BASH_ENV that does."""
    greeting = tmp_path / "greeting.sh"
    greeting.write_text("echo 7\nprintf 'Welcome to n0, 8 GPUs: '\n")
    (stubs.folder / "chatter").write_text("echo 'Dear user,'; echo /scratch/of/user; printf 'Mind the quota. '\n")
    lines = tmp_path / "lines.txt"
    lines.write_text("--optim.learning_rate 1\n")
    words = [lines if word == "README.md" else word for word in SCRIPTS[script]]
    stubs.run(*words, BASH_ENV=str(greeting), SLURM_ARRAY_TASK_ID="1")
    assert stubs.launched is not None, stubs.said
    assert stubs.launched[stubs.launched.index("--num_processes") + 1] == "1"
    if script == "sweep":
        assert stubs.launched[-2:] == ["--run.folder", "runs/demo-1"]
    if script == "job":
        assert "runs/demo" not in stubs.said


def test_a_copy_of_the_example_site_file_changes_nothing(stubs: Stubs) -> None:
    """Its lines wait to be uncommented; every one of them is a line of the shell."""
    example = ROOT / "slurm" / "site.example.sh"
    shown = 'set -euo pipefail; shown() { compgen -v | grep -v "^BASH\\|^before$"; }; before=$(shown); . "$0"; '
    shown += '[ "$before" = "$(shown)" ]'
    subprocess.run(["bash", "-c", shown, example], cwd=stubs.folder, check=True)  # a folder without a .venv
    lines = example.read_text(encoding="utf-8").splitlines()
    settings = [line[2:] for line in lines if re.match(r"# (export |module |[A-Z_]+=)", line)]
    assert len(settings) == 10
    (stubs.folder / "site.sh").write_text("\n".join(settings), encoding="utf-8")
    subprocess.run(["bash", "-n", stubs.folder / "site.sh"], check=True)


def test_a_node_that_says_nothing(stubs: Stubs) -> None:
    (stubs.folder / "chatter").write_text("echo 'This account is locked.'; exit 0\n")
    assert stubs.run(*SCRIPTS["job"]) == 64, stubs.said
    assert stubs.said == "slurm: unexpected output: This account is locked.\n"


def test_python_that_says_nothing(stubs: Stubs) -> None:
    """What it has said instead is shown."""
    (stubs.folder / "python").write_text("#!/bin/bash\necho 'python: see module load'\n")
    (stubs.folder / "python").chmod(0o755)
    assert stubs.run(*SCRIPTS["job"]) == 64, stubs.said
    assert stubs.said.endswith("python: see module load\n")
    assert stubs.launched is None
