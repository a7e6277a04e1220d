"""F16: what stands on a command line or in a file of overrides reaches the trainer byte for byte, and no shell takes it
apart. Needs no SLURM: `srun` and `accelerate` are stubs, the scripts and the recipe's reading are real.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_runs import until
from tests.support.slurm_stubs import Stubs
from tests.support.training_runs import ROOT

SPECIAL = "a  'b' \"c\" $(touch X1) `touch X2`; touch X3 & \\d * ~ ../é 漢 🙂 %s"
TWO_LINES = f"{SPECIAL}\n--not.an.option\n\n"
# As the trainer leaves it behind a run that is finished.
TRAINED = r"""mkdir -p "$FOLDER"
printf '{\n "state": "finished",\n "job": "4711.0",\n "time": ""\n}\n' >"$FOLDER/status.json"
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with such a name; no shell has touched anything."""
    made = tmp_path / TWO_LINES.replace("/", "-")
    made.mkdir()
    recipe = {"data": {"train": [{"path": "rows.jsonl", "format": "qa"}]}, "run": {"folder": str(made / "run")}}
    (made / "recipe.yaml").write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")  # is YAML as well
    yield made
    assert not [path for folder in (ROOT, tmp_path, made, Path.cwd()) for path in folder.glob("X*")]


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    made = Stubs(tmp_path / "stubs")
    (made.folder / "training").write_text(TRAINED, encoding="utf-8")
    return made


def trained_with(stubs: Stubs) -> list[str]:
    """The trainer's words."""
    assert stubs.launched is not None, stubs.said
    return stubs.launched[stubs.launched.index("train/main.py") + 1 :]


def test_a_job(stubs: Stubs, place: Path) -> None:
    words = [str(place / "recipe.yaml"), "--run.folder", str(place / "run"), "--data.system_prompt", TWO_LINES]
    words += ["--model.path=" + SPECIAL, "--data.cache_folder", "~"]
    assert stubs.run("slurm/job.sh", *words, FOLDER=str(place / "run")) == 0, stubs.said
    assert trained_with(stubs) == ["--config", *words]


def test_a_task_of_a_sweep(stubs: Stubs, place: Path) -> None:
    """The words of a line are xargs': quotes group, nothing is expanded. The folder gets the number of the line."""
    words = ["--data.system_prompt", SPECIAL, "--model.path=" + SPECIAL]
    lines = place / "overrides.txt"
    lines.write_text("--optim.learning_rate 1\n" + " ".join(map(shlex.quote, words)) + "\n", encoding="utf-8")
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "4711", "FOLDER": f"{place / 'run'}-2"}
    assert stubs.run("slurm/sweep.sh", place / "recipe.yaml", lines, **task) == 0, stubs.said
    assert trained_with(stubs) == ["--config", str(place / "recipe.yaml"), *words, "--run.folder", task["FOLDER"]]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_of_a_search(stubs: Stubs, place: Path, stopped: bool) -> None:
    """All words go to the search; a warned task makes the file that it stops for, and is requeued."""
    python = stubs.folder / "python"
    waits = 'until [ -e "${!#}" ]; do sleep 0.02; done\n' if stopped else ""
    python.write_text(f'#!/bin/bash\nprintf \'%s\\0\' "$@" >"$STUBS/searched"\n{waits}', encoding="utf-8")
    python.chmod(0o755)
    words = [str(place / "recipe.yaml"), "--space", SPECIAL, "--data.system_prompt", TWO_LINES]
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "4711"}
    script = stubs.start("slurm/sweep.sh", *words, **task)
    until((stubs.folder / "searched").exists)
    if stopped:
        script.send_signal(signal.SIGUSR1)
    assert script.wait(60) == 0, stubs.said
    searched = (stubs.folder / "searched").read_bytes().decode().split("\0")[:-1]
    stop = str(ROOT / "slurm-4711_2.stop")
    assert searched == ["-m", "train.search", *words, "--stop_file", stop]
    assert not Path(stop).exists()
    assert stubs.requeued == stopped
