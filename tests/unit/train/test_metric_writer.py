"""What is written while a run trains, and that a resumed run leaves no doubles."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.config import Config, WatchConfig
from train.engine.metric_writer import Board
from train.engine.progress import ProgressBar
from train.fingerprint import flat
from train.protocols import Sample


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in lines(run) if "train/loss" in line]


def tensorboard(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run)).Reload()


def curve(run: Path) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard(run).Scalars("train/loss")]


def single(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As TensorBoard stores them: in single precision."""
    return [(step, float(np.float32(value))) for step, value in points]


def train(run: Path, first: int, last: int, offset: float = 0.0, config: WatchConfig | None = None) -> None:
    board = Board(run, config or WatchConfig(), main_process=True)
    board.start(first, last)
    if first == 0:
        board.metrics(0, {"validation/loss": 9.0 + offset})
    for step in range(first + 1, last + 1):
        board.metrics(step, {"train/loss": 1 / step + offset, "train/learning_rate": 1e-4})
    board.close()


def test_the_same_numbers_in_jsonl_and_tensorboard(tmp_path: Path) -> None:
    train(tmp_path, 0, 5)
    assert losses(tmp_path) == [(step, 1 / step) for step in range(1, 6)]
    assert curve(tmp_path) == single([(step, 1 / step) for step in range(1, 6)])
    assert lines(tmp_path)[0]["start"] is True
    assert all(line["time"] > 1.7e9 for line in lines(tmp_path))


def test_a_resumed_run_has_no_doubles(tmp_path: Path) -> None:
    train(tmp_path, 0, 9)
    train(tmp_path, 4, 12, offset=100.0)
    expected = [(s, 1 / s + (100.0 if s > 4 else 0.0)) for s in range(1, 13)]
    assert losses(tmp_path) == expected
    assert curve(tmp_path) == single(expected)


def test_twice_resumed_and_begun_anew(tmp_path: Path) -> None:
    train(tmp_path, 0, 6)
    train(tmp_path, 3, 6, offset=10.0)
    train(tmp_path, 3, 5, offset=20.0)
    expected = [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 20.25), (5, 20.2)]
    assert losses(tmp_path) == expected
    assert curve(tmp_path) == single(expected)
    train(tmp_path, 0, 2, offset=30.0)
    assert [step for step, _ in losses(tmp_path)] == [1, 2]
    assert [step for step, _ in curve(tmp_path)] == [1, 2]
    assert [line["validation/loss"] for line in lines(tmp_path) if "validation/loss" in line] == [39.0]
    assert [event.value for event in tensorboard(tmp_path).Scalars("validation/loss")] == [39.0]


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    train(tmp_path, 0, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    train(tmp_path, 3, 4)
    assert losses(tmp_path) == [(step, 1 / step) for step in range(1, 5)]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(), main_process=True)
    board.start(0, 2)
    board.metrics(1, {"train/loss": float("nan"), "train/gradient_norm": float("inf")})
    board.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert lines(tmp_path)[1]["train/loss"] is None


def test_only_the_main_process_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = Board(tmp_path, WatchConfig(), main_process=False)
    board.start(0, 3)
    board.hyperparameters({"seed": 1})
    board.metrics(1, {"train/loss": 1.0})
    board.samples(1, [Sample("a", "b")])
    board.text(1, "note", "text")
    board.progress(3, 1.0, 10.0)
    board.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    train(tmp_path, 0, 2, config=WatchConfig(tensorboard=False))
    assert len(losses(tmp_path)) == 2
    assert not list(tmp_path.glob("events.*"))


def test_samples_are_kept_as_they_are_and_shown(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(), main_process=True)
    board.start(0, 3)
    board.samples(3, [Sample("二加二是多少?", "四。\n# not a heading", "四"), Sample("Hi", "")])
    board.samples(4, [])
    board.close()
    kept = [json.loads(line) for line in (tmp_path / "samples/step-000003.jsonl").read_text("utf-8").splitlines()]
    assert kept[0] == {"prompt": "二加二是多少?", "answer": "四。\n# not a heading", "reference": "四"}
    assert kept[1]["answer"] == ""
    assert not (tmp_path / "samples/step-000004.jsonl").exists()
    events = tensorboard(tmp_path)
    page = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    # not a heading" in page  # indented: shown as text
    assert "二加二" in page


def test_rewards_stand_in_a_column_of_their_own(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(), main_process=True)
    board.start(0, 3)
    board.samples(3, [Sample("a|b", "*so*\n<b>", reward=-1.25), Sample("c", "d", reward=2.0, held_out=False)])
    board.close()
    kept = [json.loads(line) for line in (tmp_path / "samples/step-000003.jsonl").read_text("utf-8").splitlines()]
    assert [(sample["answer"], sample["reward"], sample["held_out"]) for sample in kept] == [
        ("*so*\n<b>", -1.25, True),
        ("d", 2.0, False),
    ]
    page = tensorboard(tmp_path).Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    held_out, _, drawn = page.partition("**Drawn while training**")
    assert "| a&#124;b | \\*so\\*<br>&lt;b&gt; | -1.25 |" in held_out
    assert "| c | d | 2 |" in drawn


def test_resuming_removes_samples_of_steps_to_come(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 9)
    for step in (0, 4, 8):
        board.samples(step, [Sample("p", str(step))])
    board.close()
    train(tmp_path, 4, 5, config=WatchConfig(tensorboard=False))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-000000.jsonl", "step-000004.jsonl"]


def test_hyperparameters_hold_the_whole_recipe_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "canary-0815")
    board = Board(tmp_path, WatchConfig(), main_process=True)
    board.start(0, 1)
    board.hyperparameters({**flat(Config()), "data.system_prompt": "say canary-0815"})
    board.close()
    written = b"".join(path.read_bytes() for path in tmp_path.glob("events.*"))
    assert b"optim.learning_rate" in written
    assert b"say ***" in written
    assert b"canary-0815" not in written


def test_the_columns_that_one_looks_for_come_first(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.backend_context import _sort_and_reduce_to_hparams_limit
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = Board(tmp_path, WatchConfig(), main_process=True)
    board.start(0, 1)
    board.hyperparameters(flat(Config()))
    board.close()
    tags = EventAccumulator(str(tmp_path)).Reload().summary_metadata
    found = HParamsPluginData.FromString(tags["_hparams_/experiment"].plugin_data.content).experiment
    _sort_and_reduce_to_hparams_limit(found)
    names = [info.name for info in found.hparam_infos]
    assert names[:5] == ["batch.tokens_per_step", "model.path", "objective", "optim.learning_rate", "tuning.kind"]
    assert len(names) == len(flat(Config()))


def test_a_run_of_before_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    Board(tmp_path, WatchConfig(), main_process=True).start(0, 1)
    assert [path.parent.name for path in tmp_path.rglob("events.*")] == ["tensorboard"]


def test_a_log_gets_a_line_every_ten_seconds_and_at_the_end() -> None:
    out = io.StringIO()
    now = [100.0]
    bar = ProgressBar(True, stream=out, clock=lambda: now[0])
    bar.start(0, 40)
    for step in range(1, 41):
        now[0] += 1.5
        bar.update(step, 2.0 - step / 40, 1234.4)
    bar.close()
    shown = out.getvalue().splitlines()
    assert [line.split()[1] for line in shown] == ["1/40", "8/40", "15/40", "22/40", "29/40", "36/40", "40/40"]
    assert shown[0] == "step 1/40  loss 1.9750  1,234 tokens/s"  # one step tells nothing about the next
    assert shown[1] == "step 8/40  loss 1.8000  1,234 tokens/s  48 s left"
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_without_a_total_no_time_left_is_told() -> None:
    out = io.StringIO()
    now = [0.0]
    bar = ProgressBar(True, stream=out, clock=lambda: now[0])
    bar.start(0, None)
    for step in (1, 2):
        bar.update(step, 2.0, 10.0)
        now[0] += 60
    assert out.getvalue() == "step 1  loss 2.0000  10 tokens/s\nstep 2  loss 2.0000  10 tokens/s\n"


def test_on_a_terminal_log_lines_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler(screen)
    logging.getLogger().addHandler(handler)
    bar = ProgressBar(True, stream=screen)
    bar._console = Console(file=screen, force_terminal=True, width=80)
    try:
        bar.start(0, 4)
        bar.update(1, 1.5, 20.0)
        logging.getLogger("x").warning("look here")
        bar.update(4, 1.25, 20.0)
        bar.close()
        assert handler.stream is screen
    finally:
        logging.getLogger().removeHandler(handler)
    assert "look here\n" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert "loss 1.2500" in screen.getvalue()
