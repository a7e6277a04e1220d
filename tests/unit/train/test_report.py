"""The report of a run folder, as the board and the record leave it."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from train.config import Config, LoraConfig, OptimConfig, TuningConfig, ValidationConfig, WatchConfig
from train.engine import run_info
from train.engine.metric_writer import Board
from train.failure.stop import Status
from train.protocols import Sample
from train.report import print_table, write_report
from train.report.__main__ import main
from train.report.run import Change, read_run
from train.report.words import answer, difference, last_turn, number, readable, shortened
from zerotune.common.console import duration
from zerotune.common.errors import UserError
from zerotune.common.metric_format import POSITIVE, SHARE, UNBOUNDED, Scale

PROMPT = "<|im_start|>user\n北京的首都是什么?|pipe<|im_end|>\n<|im_start|>assistant\n"


def make_run(run: Path, steps: int = 60) -> Path:
    """A run whose loss has its best validation at step 40."""
    config = Config(tuning=TuningConfig(kind="lora", lora=LoraConfig(rank=8)))
    run_info.write(
        run,
        **run_info.circumstances(torch.device("cpu")),
        config=dataclasses.asdict(config),
        fingerprint="f" * 64,
        parameters={"trained": 4_884_480, "total": 139_399_488},
        lower_is_better={"loss": True, "perplexity": True, "exact_match": False},
        world_size=2,
        precision="bf16",
        peak={"flops": 1e11, "source": "measured matrix product"},
    )
    board = Board(run, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, steps)
    for step in range(steps + 1):
        if step:
            loss = 1.1 + 2 * math.exp(-step / 12) + 0.1 * math.sin(7 * step)
            values = {
                "loss": loss,
                "learning_rate": 2e-4 * min(step / 5, 1 - step / steps),
                "tokens": 1000.0 * step,
                "gradient_norm": 3 * loss / 4,
                "tokens_per_second": 1800 + 90 * math.sin(step),
                "mfu": 0.41,
                "memory_gb": 1.5 + step / 100,
                "padding_share": 0.004,
                "epoch": step / 20,
                "skipped_steps": 0.0,
            }
            board.metrics(step, {f"train/{name}": value for name, value in values.items()})
        if step % 20 == 0:
            held_out = {0: 3.2, 20: 1.6, 40: 1.25}.get(step, 1.4)
            values = {"perplexity": math.exp(held_out), "loss": held_out, "exact_match": min(step / 80, 0.6)}
            board.metrics(step, {f"validation/{name}": value for name, value in values.items()})
            board.samples(step, [Sample(PROMPT, f"answer <b>{step}</b>", "中国|*"), Sample("Hi", "x" * 999)])
    board.close()
    (run / "merged").mkdir()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "演示 run")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.md"
    return path.read_text(encoding="utf-8")


def make_rewarded_run(run: Path, rollouts: int = 12) -> Path:
    """PPO: rewards rise, and with them the distance."""
    config = Config(objective="ppo", validation=ValidationConfig(metric="reward"))
    better = {"reward": False, "finished": False, "repetition": True}
    run_info.write(run, config=dataclasses.asdict(config), lower_is_better=better)
    board = Board(run, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 4 * rollouts)
    for rollout in range(rollouts + 1):
        reward = -2 + rollout / 4 + 0.2 * math.sin(5 * rollout)
        values = {
            "reward": reward,
            "reward_deviation": 1.5 - rollout / 20,
            "reward_sentiment": reward + 0.1,
            "reward_repetition": 0.1,
            "kl": rollout**1.5 / 4,
            "response_tokens": 48.0 - rollout,
            "finished": rollout / 20,
            "empty": 0.0,
            "repetition": 0.1 + rollout / 100,
        }
        if rollout:
            more = {"entropy": 3 - rollout / 10, "reward_min": -4.0, "reward_max": 3.0, "kl_weight": 0.05}
            board.metrics(4 * rollout - 3, {f"rollout/{name}": value for name, value in (values | more).items()})
            board.metrics(4 * rollout, {"train/policy": -0.01, "train/epoch": rollout / 4, "ppo/clip_fraction": 0.1})
        if rollout % 4 == 0:
            board.metrics(4 * rollout, {f"validation/{name}": value + 0.3 for name, value in values.items()})
            drawn = Sample("not | held out", "drawn", reward=7.0, held_out=False)
            board.samples(4 * rollout, [Sample("The film", f"was {rollout}", reward=reward), drawn])
    board.close()
    return run


def test_rewards_before_and_after(tmp_path: Path) -> None:
    page = write_report(make_rewarded_run(tmp_path / "rewarded")).read_text(encoding="utf-8")
    headline = page.split("\n\n")[1]
    assert "before → after: reward -1.7 → " in headline
    assert "kl" not in headline  # it can only grow: that is neither better nor worse
    links = re.findall(r"!\[[^]]+]\(report/([^)]+)\.png\)", page)
    assert links == ["reward", "answers"]
    assert (
        "| prompt | before | reward | after | reward |\n|---|---|---:|---|---:|\n| The film | was 0 | -2 | was 12 | "
        in page
    )
    assert "drawn" not in page
    assert "| kl | 0.3 | **10.69** | +10.39 | 10.69 |" in page  # no share of next to nothing
    assert "-1.7" in terminal(tmp_path / "rewarded")


def test_a_single_part_is_the_reward_itself(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 4)
    board.metrics(1, {"rollout/reward": 1.0, "rollout/reward_deviation": 0.5, "rollout/reward_model": 1.0})
    board.close()
    write_report(tmp_path)
    with Image.open(tmp_path / "report" / "reward.png") as picture:
        assert picture.height == 600


def terminal(run: Path, width: int = 80) -> str:
    out = io.StringIO()
    print_table(run, Console(file=out, width=width))
    return out.getvalue()


def test_the_best_step_is_that_of_the_deciding_metric(run: Path) -> None:
    found = read_run(run)
    assert found.best_step == found.merge_step == 40
    by_name = {change.name: change for change in found.changes()}
    assert next(iter(by_name)) == "loss"
    assert (by_name["loss"].before, by_name["loss"].chosen, by_name["loss"].last) == (3.2, 1.25, 1.4)
    assert by_name["exact_match"].chosen == 0.5  # at step 40, though it rises afterwards
    assert by_name["exact_match"].scale is SHARE
    assert by_name["perplexity"].scale.is_ratio
    assert all(change.better for change in by_name.values())


def test_the_page_begins_with_the_answer(run: Path, page: str) -> None:
    assert "loss 3.2 → 1.25, perplexity 24.53 → 3.49, exact match 0.0 % → 50.0 %" in page.split("\n\n")[1]
    assert "| exact match | 0.0 % | **50.0 %** | +50.0 points | 60.0 % |" in page
    assert "| loss | 3.2 | **1.25** | -61 % | 1.4 |" in page
    assert "3.5 % of the parameters (4,884,480 of 139,399,488, lora)" in page
    assert "60,000 tokens" in page
    assert "41.0 %" in page
    assert f"| Merged | {str(run / 'merged').replace('_', chr(92) + '_')} |" in page


def test_what_the_model_writes_stays_in_its_cell(page: str) -> None:
    row = next(line for line in page.splitlines() if "北京" in line)
    assert row.count("|") == 5
    assert "北京的首都是什么?&#124;pipe" in row
    assert "answer &lt;b&gt;0&lt;/b&gt; | answer &lt;b&gt;40&lt;/b&gt; |" in row
    assert "im_start" not in row


def test_every_linked_picture_is_there_and_shows_something(run: Path, page: str) -> None:
    links = re.findall(r"!\[[^]]+]\(([^)]+)\)", page)
    assert links == ["report/loss.png", "report/validation.png", "report/learning.png", "report/speed.png"]
    for link in links:
        with Image.open(run / link) as picture:
            assert picture.width == 1200
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_holds_80_columns(run: Path, width: int) -> None:
    shown = terminal(run, width)
    assert max(cell_len(line) for line in shown.splitlines()) <= min(width, 80)
    flat = " ".join(shown.split())
    assert "loss 3.2 → 1.25" in flat
    assert "北京" in flat


def test_a_run_that_made_it_worse_says_so(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 2)
    board.metrics(0, {"validation/loss": 1.0})
    board.metrics(2, {"validation/loss": 2.0})
    board.close()
    assert "loss 1 → 2 (worse)" in write_report(tmp_path).read_text(encoding="utf-8")
    assert read_run(tmp_path).best_step == 2


def test_merging_the_last_checkpoint_compares_with_the_last(tmp_path: Path) -> None:
    config = dataclasses.asdict(Config())
    config["merge"]["checkpoint"] = "last"
    make_run(tmp_path)
    run_info.write(tmp_path, config=config)
    assert read_run(tmp_path).merge_step == 60
    assert {c.name: c.chosen for c in read_run(tmp_path).changes()}["loss"] == 1.4


def test_of_equal_values_the_lowest_loss_is_merged_then_the_last(tmp_path: Path) -> None:
    config = Config(validation=ValidationConfig(metric="exact_match"))
    run_info.write(tmp_path, config=dataclasses.asdict(config), lower_is_better={"loss": True, "exact_match": False})
    board = Board(tmp_path, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 5)
    for step, loss in enumerate((3.0, 2.0, 1.5, 1.2, 1.2, 1.4)):
        board.metrics(step, {"validation/loss": loss, "validation/exact_match": 0.5 if step else 0.0})
    board.close()
    assert read_run(tmp_path).best_step == 4


def test_what_was_not_merged_is_not_called_merged(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "merged").rmdir()
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "not merged yet" in page
    assert "which is merged" not in page


def test_a_tiny_share_of_trained_parameters_is_not_0(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    run_info.write(tmp_path / "run", parameters={"trained": 5120, "total": 494_037_888})
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "0.0010 % of the parameters (5,120 of 494,037,888" in page


def test_time_leaves_out_the_gap_before_a_resumption(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "time": 100, "start": true}\n{"step": 1, "time": 110, "train/loss": 2}\n'
        '{"step": 1, "time": 5000, "start": true}\n{"step": 2, "time": 5007, "train/loss": 1}\n{"step": 3, "ti'
    )
    found = read_run(tmp_path)
    assert (found.seconds, found.processes, found.last_step) == (17, 2, 2)
    assert "17 s, resumed 1 time" in terminal(tmp_path)


@pytest.mark.parametrize(
    ("validations", "missing"),
    [("", "no validation."), ('{"step": 4, "time": 3, "validation/reward": 1}\n', "no validation before training.")],
)
def test_the_headline_without_a_loss_counts_the_steps(tmp_path: Path, validations: str, missing: str) -> None:
    """PPO has terms of its own in place of train/loss."""
    steps = '{"step": 1, "time": 2, "train/policy": 2}\n{"step": 8, "time": 9, "train/policy": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(steps + validations)
    assert f"Trained 8 steps; {missing}" in " ".join(terminal(tmp_path).split())


def test_the_training_loss_of_numbers_is_that_of_both_terms(tmp_path: Path) -> None:
    """As validation/loss is, which stands beside it in the figure."""
    (tmp_path / "run.json").write_text('{"config": {"objective": "numeric"}}')
    for term in ("loss", "one_vs_rest"):
        lines = (
            f'{{"step": 1, "time": 1, "train/{term}": 2, "train/value": 3}}\n'
            f'{{"step": 2, "time": 2, "train/{term}": 1}}\n'
        )
        (tmp_path / "metrics.jsonl").write_text(lines)
        assert dict(read_run(tmp_path).training_loss) == {1: 5, 2: 1}
    assert "Training loss 5 → 1" in " ".join(terminal(tmp_path).split())


def test_little_is_enough(tmp_path: Path) -> None:
    """A run that was killed before its first validation, with nothing but metrics.jsonl."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 1, "start": true}\n')
    assert "No step has been written yet." in terminal(tmp_path)
    write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 2, "train/loss": 2.5, "train/gradient_norm": null}\n')
    assert "Training loss 2.5 → 2.5" in " ".join(terminal(tmp_path).split())
    assert "report/loss.png" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_epoch_that_was_not_written_is_not_told(tmp_path: Path) -> None:
    board = Board(tmp_path, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 2)
    for step in range(3):
        board.metrics(step, {"validation/loss": 3.0 - step, "validation/response_tokens": 1.0})
    board.metrics(2, {"train/epoch": 1.0})
    board.close()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "| before | 0 | 3 | 1 |\n| - | 1 | 2 | 1 |\n| 1 | 2 \\* | 1 | 1 |" in page


def test_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert main() == 64
    assert "not a run folder" in capsys.readouterr().err


def test_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.setattr("sys.argv", ["report", str(copy)])
    assert main() == 0
    assert str(copy / "report.md") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (None, UNBOUNDED, "-"),
        (0.0, UNBOUNDED, "0"),
        (12345.6, UNBOUNDED, "12,346"),
        (0.625, SHARE, "62.5 %"),
        (1e9, UNBOUNDED, "1e+09"),
    ],
)
def test_numbers(value: float | None, scale: Scale, text: str) -> None:
    assert number(value, scale) == text


def test_durations_and_samples_are_readable() -> None:
    assert [duration(s) for s in (0.4, 9.4, 59.6, 252, 11100)] == [
        "0 s",
        "9 s",
        "1 min 00 s",
        "4 min 12 s",
        "3 h 05 min",
    ]
    assert readable("a<|im_end|>\n\n\n<s>a | b</s>") == "a\na | b"
    assert [answer(text) for text in ("Yes.</s>", "\n\n", None)] == ["Yes.", "(blank)", "-"]
    assert shortened("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    "prompt",
    [
        "Hi,\n\nthere",
        "<|im_start|>system\nGo.<|im_end|>\n<|im_start|>user\nHi,\nthere<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|start_header_id|>user<|end_header_id|>\nHi,\nthere<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n",
        "<s>Hi,\nthere",
    ],
)
def test_the_last_turn_of_a_prompt(prompt: str) -> None:
    assert last_turn(prompt) == "Hi,\nthere"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(4.0, 1.0, "-75 %"), (3.977, 0.0154, "-99.6 %"), (7.628, 7.596, "-0.4 %"), (2.0, 5.0, "+150 %"), (0.0, 1.0, "+1")],
)
def test_differences(before: float, after: float, text: str) -> None:
    assert difference(Change("loss", before, after, after, lower_is_better=True, scale=POSITIVE)) == text


def other_run(run: Path, objective: str, rate: float, values: dict[str, float], **lower: bool) -> Path:
    """A run of another objective, broken off before its end."""
    config = Config(objective=objective, optim=OptimConfig(learning_rate=rate), tuning=TuningConfig(kind="full"))
    run_info.write(run, config=dataclasses.asdict(config), lower_is_better=lower)
    status = Status(run)
    status.begin(20)
    status.write("preempted", 20)
    board = Board(run, WatchConfig(tensorboard=False), main_process=True)
    board.start(0, 30)
    board.metrics(20, {f"validation/{name}": value for name, value in values.items()} | {"train/loss": 1.0})
    board.close()
    return run


def test_several_runs_in_one_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of different objectives, with names in another script, and a folder that is no run among them."""
    short = other_run(
        tmp_path / "short", "causal_lm", 1e-4, {"loss": 1.1, "perplexity": 3.0}, loss=True, perplexity=True
    )
    classes = other_run(tmp_path / "分类", "sequence_classification", 3e-5, {"accuracy": 0.91}, accuracy=False)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text('{"step": 1, "time": 1, "train/loss": 2.0}\n')
    out = tmp_path / "all.md"
    assert main([str(run), str(short), str(classes), str(bare), str(tmp_path / "none"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"skipped: {tmp_path / 'none'} is not a run folder" in printed.err
    assert max(map(cell_len, printed.out.splitlines())) <= 80
    head, _, *rows = out.read_text(encoding="utf-8").splitlines()
    heads = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [dict(zip(heads, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]
    assert [row["run"] for row in cells] == ["演示 run", "short", "分类", "bare"]
    assert [row["optim.learning_rate"] for row in cells] == ["2e-05", "0.0001", "3e-05", "-"]
    assert [row["objective"] for row in cells] == ["causal\\_lm", "causal\\_lm", "sequence\\_classification", "-"]
    assert [row["tuning.kind"] for row in cells] == ["lora", "full", "full", "-"]
    assert [row["tuning.lora.rank"] for row in cells] == ["8", "-", "-", "-"]
    assert not any("alpha" in head for head in heads)
    assert [row["loss"] for row in cells] == ["1.25", "**1.1**", "-", "-"]
    assert [row["accuracy"] for row in cells][2].startswith("91.0")
    assert not any("ppo" in head for head in heads)


def test_runs_that_differ_in_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), str(run)]) == 0
    assert "learning_rate" not in capsys.readouterr().out


def test_none_of_several_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 64
    assert capsys.readouterr().err.count("is not a run folder") == 2


def test_a_quantised_base_is_said_to_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "dequantised" not in write_report(run).read_text()
    run_info.write(run, model={"digest": "d" * 64, "quantized": "fp8"})
    assert "| Base | stored as fp8, dequantised for training |" in write_report(run).read_text()
