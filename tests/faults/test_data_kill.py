"""Killing a run while it tokenises: no process stays, nothing half-made is used, the next run starts clean."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.data_tools import recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
if __name__ == "__main__":
    from tests.support.data_tools import recipe, tokenizer
    from tests.support.ranks import Solo
    from train.config import SourceConfig
    from train.data.prepare import prepare
    config = recipe(sys.argv[2], SourceConfig(sys.argv[1], "qa"), workers=2, max_length_tokens=512)
    prepare(config, tokenizer(), 0, Solo())
"""


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_kill_while_tokenising(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": "word " * 200} for i in range(20_000)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, str(script), str(path), str(tmp_path / "cache")], cwd=ROOT, env=environment)
    try:
        drafts = tmp_path / "cache" / "tokens"
        workers: list[psutil.Process] = []

        def is_busy():
            assert run.poll() is None
            workers[:] = [p for p in psutil.Process(run.pid).children() if p.cpu_times().user > 3.0]
            return len(workers) >= 2 and list(drafts.rglob("*.tmp-*"))

        wait_for(is_busy, 120)
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 60)
    assert len(list(drafts.rglob("*.tmp-*"))) == 1
    assert not list(drafts.rglob("manifest.json"))

    write_jsonl(path, rows[:50])
    again = prepare(recipe(tmp_path / "cache", SourceConfig(str(path), "qa")), tokenizer(), 0, Solo())
    assert len(again.train) == 50


def test_workers_never_load_torch():
    code = "import sys, train.data.tokenize_workers, train.data.tokenize; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode == 0
