"""A streamed run through `main`: ended by its epochs before its steps, killed between windows, the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, finished, leftovers, losses, status, weights
from tests.support.training_runs import QUESTIONS, metrics

PASSES = 3
KILLS = (4, 3, 6)  # each life dies before this many-th update of its own


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training rows with a bad one among them, held-out rows, one of which is learned too."""
    folder = tmp_path_factory.mktemp("stream")
    rows = [*QUESTIONS[:17], {"question": "bad", "answer": None}, *QUESTIONS[17:40]]
    held = [*QUESTIONS[40:], QUESTIONS[2]]
    for name, values in (("train", rows), ("held", held)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in ("train", "held")}


def options(files: dict[str, Path], **more: object) -> dict[str, object]:
    """Windows of a few rows, less than a step holds."""
    return {
        "data.train": json.dumps([{"path": str(files["train"]), "format": "qa"}]),
        "data.validation": json.dumps([{"path": str(files["held"]), "format": "qa"}]),
        "data.validation_fraction": 0,
        "data.streaming": "true",
        "data.streaming_window_rows": 4,
        "data.on_bad_row": "skip",
        "data.on_overlap": "drop",
        "duration.max_epochs": PASSES,
        "duration.max_steps": 1000,
        "checkpoint.every_steps": 2,
        "validation.every_steps": 5,
        **more,
    }


def test_a_streamed_run_ends_with_its_epochs_and_no_kill_changes_a_bit(
    zygote: Zygote, workplace: Workplace, files: dict[str, Path], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    chosen = options(files, **{"data.cache_folder": tmp_path / "cache"})
    processes = zygote.run(workplace.arguments(whole, **chosen), tmp_path / "whole", "ddp")
    assert processes.codes == [0, 0], processes.output
    steps = max(losses(whole))
    assert steps > 2 * sum(KILLS) / 3
    assert steps < 1000
    assert sorted(losses(whole)) == list(range(1, steps + 1))
    assert (status(whole)["state"], status(whole)["step"]) == ("finished", steps)
    assert finished(whole)[-1] == steps
    assert max(metrics(whole, "validation/loss")) == steps
    seen = metrics(whole, "train/tokens")
    per_step = [seen[step] - seen.get(step - 1, 0) for step in range(1, steps)]
    assert all(abs(tokens - 256) < 128 for tokens in per_step)

    said = processes.logs[0].read_text()
    assert said.count("1 of 4 rows skipped: 1 field `answer` is null; the first is ") == 1
    assert said.count("1 training row(s) are there too") == 1
    assert "left out" not in processes.logs[1].read_text()
    assert json.loads((whole / "run.json").read_text())["rows_left_out"] == PASSES

    chosen["data.cache_folder"] = tmp_path / "cold"
    for life, update in enumerate(KILLS):
        orders = [{"at": "train.engine.loop:Loop._update", "nth": update, "do": "SIGKILL"}]
        processes = zygote.run(workplace.arguments(cut, **chosen), tmp_path / f"life{life}", "ddp", orders)
        assert -9 in processes.codes, processes.output
        assert finished(cut)
    processes = zygote.run(workplace.arguments(cut, **chosen), tmp_path / "last", "ddp")
    assert processes.codes == [0, 0], processes.output
    assert "resumed from" in processes.output
    assert losses(cut) == losses(whole)
    assert metrics(cut, "validation/loss") == metrics(whole, "validation/loss")
    assert weights(cut, steps) == weights(whole, steps)
    assert leftovers(cut) == []
    assert status(cut)["state"] == "finished"

    processes = zygote.run(workplace.arguments(cut, **chosen), tmp_path / "again", "ddp")
    assert processes.codes == [0, 0], processes.output
    assert status(cut)["step"] == steps
    assert losses(cut) == losses(whole)


def test_a_stop_between_windows_goes_on_unchanged(
    zygote: Zygote, workplace: Workplace, files: dict[str, Path], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    limits = {"duration.max_epochs": "null", "duration.max_steps": "null", "duration.max_tokens": 3000}
    chosen = options(files, **limits, **{"data.cache_folder": tmp_path / "cache"})
    processes = zygote.run(workplace.arguments(whole, **chosen), tmp_path / "whole")
    assert processes.codes == [0], processes.output
    steps = max(losses(whole))
    assert 3000 <= metrics(whole, "train/tokens")[steps] < 3128
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 5, "do": "SIGTERM"}]
    processes = zygote.run(workplace.arguments(cut, **chosen), tmp_path / "stopped", orders=orders)
    assert processes.codes == [0], processes.output
    assert (status(cut)["state"], status(cut)["step"]) == ("preempted", 5)
    processes = zygote.run(workplace.arguments(cut, **chosen), tmp_path / "last")
    assert processes.codes == [0], processes.output
    assert losses(cut) == losses(whole)
    assert weights(cut, steps) == weights(whole, steps)
