"""`make demo`: the script itself, with few steps, on the real weights where they are and on a stand-in elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.training_runs import BIN, ROOT, environment, pretrained_stand_in

REAL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
SHORT = (
    "--duration.max_steps 2 --validation.max_rows 4 --validation.samples 1 --validation.max_new_tokens 8 "
    "--data.max_length_tokens 128 --batch.tokens_per_step 128 --batch.tokens_per_micro_batch 128"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_ends_with_a_table_and_leaves_what_it_names(tmp_path: Path) -> None:
    real = (REAL / "config.json").is_file()
    base, run = REAL if real else pretrained_stand_in(tmp_path / "base"), tmp_path / "run"
    variables = environment(VENV=str(BIN.parent), MODEL=str(base), RUN=str(run), ROWS="3", COLUMNS="80")
    words = ["bash", str(ROOT / "examples" / "demo.sh"), *SHORT.split(), "--data.cache_folder", str(tmp_path / "cache")]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    assert "trained: " in done.stderr
    assert "before → after: loss" in done.stdout
    assert "Warning" not in done.stderr
    own = done.stdout[: done.stdout.index(" Curves ")]
    assert not [line for line in own.splitlines() if cell_len(line) > 80 and str(tmp_path) not in line]
    named = dict(re.findall(r"^(Report|Merged model|Curves): +.*?(\S+)$", done.stdout, re.MULTILINE))
    assert set(named) == {"Report", "Merged model", "Curves"}

    for file in ("report.md", "report/loss.png", "merged/model.safetensors", "merged/config.json", "eval/report.md"):
        assert (run / file).is_file(), file
    assert list(run.glob("events.out.tfevents.*"))
    result = json.loads((run / "eval" / "result.json").read_text())
    assert {task["name"]: task["samples"] for task in result["tasks"]} == {"perplexity": 3, "qa": 3}
    assert [Path(model["path"]) for model in result["models"]] == [base, run / "merged"]
