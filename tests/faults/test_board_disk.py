"""F10: the disk under TensorBoard is full. Training goes on, with one warning and every number in metrics.jsonl."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.training_runs import arguments, launch, metrics, write_rows
from train.config import WatchConfig
from train.engine.metric_writer import Board
from train.protocols import Sample

ROOT = Path(__file__).parents[2]
STEPS = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def train(run: Path) -> list[dict]:
    """The calls of a training run."""
    board = Board(run, WatchConfig(), main_process=True)
    board.start(0, STEPS)
    for step in range(1, STEPS + 1):
        board.metrics(step, {"train/loss": 1 / step, "train/gradient_norm": 1.0})
        if step % 100 == 0:
            board.samples(step, [Sample("prompt", "answer" * 20)])
    board.close()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_full_tensorboard_disk(small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").symlink_to(small_disk)
    lines = train(run)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert os.statvfs(small_disk).f_bavail == 0
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "tensorboard" in warnings[0].getMessage()
    assert "No space left" in warnings[0].getMessage()
    assert len(list((run / "samples").iterdir())) == 4


def test_full_disk_under_everything(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even metrics.jsonl: one warning for each thing given up, and no error."""
    (small_disk / "filler").write_bytes(b"x" * 24 * 1024)
    board = Board(small_disk, WatchConfig(), main_process=True)
    board.start(0, STEPS)
    for step in range(1, STEPS + 1):
        board.metrics(step, {"train/loss": 1 / step})
    board.samples(STEPS, [Sample("p", "a")])
    board.close()
    warned = [record.getMessage().split()[0] for record in caplog.records if record.levelno >= logging.WARNING]
    assert sorted(warned) == ["metrics.jsonl", "samples", "tensorboard"]
    kept = (small_disk / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept[1:-1]] == list(range(1, len(kept) - 1))


def test_file_size_limit_needs_no_root(tmp_path: Path) -> None:
    """The same under RLIMIT_FSIZE: nothing but the warning reaches the output, not even at exit."""
    code = (
        "import sys; from pathlib import Path; from tests.faults.test_board_disk import train; train(Path(sys.argv[1]))"
    )
    limit = 40 * 1024  # less than the events need, more than metrics.jsonl does
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 0
    errors = done.stderr.splitlines()
    assert len(errors) == 1, done.stderr
    assert "tensorboard" in errors[0]
    assert "File too large" in errors[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == STEPS


def test_a_whole_run_finishes(small_disk: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").symlink_to(small_disk)
    (small_disk / "filler").write_bytes(b"x" * 28 * 1024)
    words = arguments(run, write_rows(tmp_path), watch__tensorboard="true", duration__max_epochs=3)
    done = launch(words)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert done.stderr.count("WARNING") == done.stderr.count("WARNING tensorboard in") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(metrics(run, "train/loss")) == max(metrics(run, "train/loss")) > 3


def test_an_unwritable_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    lines = train(tmp_path)
    assert lines[-1]["step"] == STEPS
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
