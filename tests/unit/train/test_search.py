"""Searches: the space file and what is refused in it, draws, rungs, the median."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import seconds_of
from train.preflight import check_inputs
from train.recipe import parse
from train.search import figures, report
from train.search.__main__ import main, options
from train.search.draw import draw
from train.search.schedule import Rungs, below_median
from train.search.space import OWN, Space, SpaceConfig, check_values, read_space
from train.search.study import Claim, Record, Study
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
BASE = ("--config", "recipes/sft-full.yaml", "--config", "recipes/cpu.yaml")
RATE = "optim.learning_rate"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def space_of(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(path)


def refusal(folder: Path, text: str) -> str:
    """What is said about a space file, by itself or with the recipe."""
    with pytest.raises(UserError) as caught:
        check_values(space_of(folder, text), BASE, check_inputs)
    assert caught.value.exit_code == 64
    return str(caught.value).replace(f"{folder}/", "")


def record(number: int, *values: float, state: str = "paused", target: int | None = None, **more: Any) -> Record:
    """A trial with these values at the rungs that it has reached."""
    rungs = [(10 * (k + 1), value) for k, value in enumerate(values)]
    made: Any = {"values": {}, "validations": {}, "value": None, "steps": 0, "seconds": 0.0, "reason": "", **more}
    return Record(number=number, state=state, target=len(values) - 1 if target is None else target, rungs=rungs, **made)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters:\n  optim.learning_rat: [1]\n", "space.yaml:2: unknown key optim.learning_rat; did you mean"),
        (f"parameters:\n  {RATE}: []\n", f"space.yaml:2: {RATE}: an empty list; give at least one value"),
        (f"parameters:\n  {RATE}: {{low: 2, high: 1}}\n", f"{RATE}: an empty range: low 2 is above high 1"),
        (f"parameters:\n  {RATE}: {{low: 1}}\n", f"{RATE}: high is missing"),
        (f"parameters:\n  {RATE}: {{low: 1, hihg: 1}}\n", f"{RATE}: unknown key hihg; did you mean high?"),
        (f"parameters:\n  {RATE}: {{low: 0, high: 1, log: true}}\n", "a logarithmic range begins above 0, not at 0"),
        (f"parameters:\n  {RATE}: {{low: 1, high: 2, log: true, step: 1}}\n", "a logarithmic range has no step"),
        (f"parameters:\n  {RATE}: {{low: 1, high: 2, step: 0}}\n", "step must be above 0, not 0"),
        ("parameters:\n  tuning.kind: {low: 1, high: 2}\n", "tuning.kind is no number: give a list of values"),
        ("parameters:\n  data.streaming: {low: 1, high: 2}\n", "data.streaming is no number"),
        ("parameters:\n  tuning.lora.rank: {low: 1.5, high: 2}\n", "low: expected a whole number, got 1.5"),
        (f"parameters:\n  {RATE}: [1, 1]\n", f"{RATE}: 1 stands there twice"),
        (f"parameters:\n  {RATE}: 1\n", f"space.yaml:2: {RATE}: expected a list of values or"),
        (f"parameters:\n  x:\n    - {{name: a, {RATE}: 1}}\n    - {{name: b, {RATE}x: 1}}\n", "yaml:4: unknown key"),
        ("parameters:\n  x:\n    - {name: a}\n", "space.yaml:3: x: sets no recipe key"),
        (f"parameters:\n  x:\n    - {{{RATE}: 1}}\n  {RATE}: [1]\n", f"{RATE} is set by x too (space.yaml:2)"),
        (f"parameters:\n  {RATE}: [1]\nprunner: none\n", "space.yaml:3: unknown key prunner; did you mean pruner?"),
        (f"parameters:\n  {RATE}: [1]\nmethod: tpe\n", "trials is missing: say how many trials tpe may have"),
        (f"parameters:\n  {RATE}: [1, 2, 3]\ntrials: 2\nmethod: grid\n", "the grid has 3 trials, more than trials: 2"),
        (f"parameters:\n  {RATE}: {{low: 1, high: 999, step: 1}}\nmethod: grid\n", "than 256, the most without"),
        ("parameters:\n  run.seed: {low: 1, high: 20000000, step: 1}\nmethod: grid\n", "has 20,000,000 trials, more"),
        (f"parameters:\n  {RATE}: {{low: 0, high: 0.01, step: 1e-10}}\nmethod: grid\n", "has 100,000,001 trials, more"),
        (f"parameters:\n  {RATE}: {{low: 0, high: 1, step: 1e-320}}\n", "step 1e-320 is too small for a range"),
        (f"parameters:\n  {RATE}: {{low: 0, high: 1{'0' * 400}}}\n", f"{RATE}: high: expected a number, got 100"),
        (f"parameters:\n  {RATE}: {{low: 0, high: 1, step: 1.5}}\n", "step 1.5 is larger than the range from 0 to 1"),
        (f"parameters:\n  {RATE}: {{low: 1, high: 2}}\nmethod: grid\n", "a grid needs a list of values, or"),
        ("trials: 2\n", "parameters is empty: name at least one recipe key"),
        ("[1]\n", "is no mapping of keys to values"),
        ("data: {}\noptim: {}\n", "space.yaml: is no space: it has no `parameters:`"),
        (f"trials: 1\nparameters:\n  {RATE}: [-1]\n", f"space.yaml:3: {RATE}: must be greater than or equal to 0"),
        (f"trials: 1\nparameters:\n  {RATE}: {{low: -1, high: 1}}\n", "must be greater than or equal to 0, not -1"),
        ("trials: 1\nparameters:\n  tuning.kind: [full, lroa]\n", "expected one of full, lora, prompt, got 'lroa'"),
        ("trials: 1\nparameters:\n  batch.tokens_per_step: [64]\n", ":3: with batch.tokens_per_step 64: recipes/"),
        ("trials: 1\nparameters:\n  model.path: [nowhere/at/all]\n", "space.yaml:3: with model.path 'nowhere/at/all'"),
        (
            f"trials: 1\nparameters:\n  x:\n    - {{name: a, {RATE}: 1e-3}}\n    - {{name: b, {RATE}: 0.001}}\n",
            "space.yaml:3: x: 'a' and 'b' give the same recipe; keep one of them",
        ),
        (
            "trials: 1\nparameters:\n  batch.tokens_per_step: [64, 32]\n  batch.tokens_per_micro_batch: [512, 256]\n",
            "space.yaml:3: with batch.tokens_per_step 64: recipes/",
        ),
        *((f"trials: 1\nparameters:\n  {key}: [1]\n", f"{key} is set by the search itself") for key in OWN[:-2]),
    ],
)  # fmt: skip
def test_a_wrong_space_is_one_message_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, f"prunner: none\nparameters:\n  optim.x: [1]\n  {RATE}: {{low: 2, high: 1}}\n")
    assert [line.split(": ")[0] for line in said.splitlines()] == ["space.yaml:1", "space.yaml:3", "space.yaml:4"]


def test_values_that_only_fit_together_are_accepted(tmp_path: Path) -> None:
    """Micro-batches of 1024 fit into none of the base recipe's steps, but into those of the space."""
    space = space_of(
        tmp_path,
        "method: random\ntrials: 1\nparameters:\n  batch.tokens_per_step: [2048]\n"
        "  batch.tokens_per_micro_batch: [2048]\n",
    )
    check_values(space, BASE, check_inputs)


@pytest.mark.parametrize("others", [0, 5])
def test_a_value_that_fits_with_one_of_another_is_accepted(tmp_path: Path, others: int) -> None:
    """Three words are too few for the kind of the base recipe; the message does not name the key that cures it. Five
    more lists make too many combinations to try all.
    """
    names = ["optim.beta1", "optim.beta2", "optim.epsilon", "optim.weight_decay", RATE][:others]
    more = "".join(f"  {name}: [0.1, 0.2, 0.3, 0.4]\n" for name in names)
    sizes = "  tokenizer.vocabulary_size: [3, 300]\n  tokenizer.kind: [bpe, word]\n"
    space = space_of(tmp_path, f"method: random\ntrials: 1\nparameters:\n{more}{sizes}")
    new = (*BASE, "--model.path", "", "--model.family", "lstm")
    check_values(space, new, check_inputs)
    alone = space_of(tmp_path, "method: random\ntrials: 1\nparameters:\n  tokenizer.vocabulary_size: [3]\n")
    with pytest.raises(UserError, match="3 is too few for bpe"):
        check_values(alone, new, check_inputs)


def test_of_a_range_the_ends_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each of its many values; a range of one value is one trial of a grid."""
    parsed = []
    monkeypatch.setattr("train.search.space.parse", lambda *given: parsed.append(given) or parse(*given))
    text = f"trials: 3\nparameters:\n  {RATE}: {{low: 0, high: 0.01, step: 1e-6}}\n"
    check_values(space_of(tmp_path, f"method: random\n{text}"), BASE, check_inputs)
    assert [over[0][1] for _, over in parsed[1:]] == [0, 0.01]
    one = space_of(tmp_path, f"method: grid\nparameters:\n  {RATE}: {{low: 0.1, high: 0.1}}\n")
    assert (one.trials, one.grid_point(0)) == (1, {RATE: 0.1})


def test_a_grid_point_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    said = refusal(
        tmp_path,
        "method: grid\nparameters:\n  batch.tokens_per_step: [512, 1024]\n"
        "  batch.tokens_per_micro_batch: [512, 1024]\n",
    )
    assert said.startswith("space.yaml:2: batch.tokens_per_micro_batch: 1024 exceeds batch.tokens_per_step, 512")
    assert len(said.splitlines()) == 1


def test_a_grid_of_keys_that_are_set_together(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        "method: grid\nparameters:\n  data:\n    - {name: all, duration.max_epochs: 2, data.train.0.fraction: 0.9}\n"
        f"    - {{duration.max_epochs: 1, data.train.0.fraction: 0.9}}\n  {RATE}: {{low: 0.1, high: 0.3, step: 0.1}}\n",
    )
    check_values(space, BASE, check_inputs)
    points = [space.grid_point(number) for number in range(space.trials)]
    second = "duration.max_epochs 1, data.train.0.fraction 0.9"
    assert points == [{"data": name, RATE: rate} for name in ("all", second) for rate in (0.1, 0.2, 0.3)]
    assert space.settings(points[0]) == {"duration.max_epochs": 2, "data.train.0.fraction": 0.9, RATE: 0.1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipes/cpu.yaml"], "--space is missing"),
        (["recipes/cpu.yaml", "--space"], "--space needs a value"),
        (["recipes/cpu.yaml", "--space", "nowhere.yaml"], "nowhere.yaml: there is no such recipe"),
        (["--space", "recipes/cpu.yaml"], "no recipe"),
        (["recipes/cpu.yaml", "--sapce", "recipes/cpu.yaml"], "unknown option --sapce; did you mean --space?"),
        (["recipes/cpu.yaml", "--space=recipes/cpu.yaml", "--worker=2"], "--worker; did you mean --workers?"),
        (["recipes/cpu.yaml", "--space", "recipes/cpu.yaml", "--workers", "0"], "must be a whole number from 1 on"),
        (["recipes/cpu.yaml", "--space", "recipes/cpu.yaml", "--num_machines", "2"], "a trial runs on one machine"),
    ],
)
def test_a_wrong_command_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        options(words)


def test_the_command_line_is_divided() -> None:
    found = options(
        [*("recipes/cpu.yaml", "--optim.learning_rate", "1", "--space=recipes/cpu.yaml", "--dry_run"),
         *("--workers", "2", "--accelerate", "ddp", "--num_processes=2")]
    )  # fmt: skip
    assert (found.workers, found.dry_run) == (2, True)
    assert found.recipe == ("--config", "recipes/cpu.yaml", "--optim.learning_rate", "1")
    assert found.launch == {"accelerate": "ddp", "num_processes": "2", "main_process_port": "0"}


@pytest.mark.parametrize("dry_run", [(), ("--dry_run",)])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--accelerate", "nowhere"], "--accelerate nowhere: there is no such accelerate config"),
        (["--accelerate", "cpu", "--num_processes", "2"], "starts one process, not 2"),
        (["--data.validation_fraction", "0"], "data.validation: a search compares trials on held-out data"),
        (["--validation.metric", "f1"], "validation.metric"),
        (["--validation.metric", "exact_match"], "exact_match"),
        (["--space", "{tmp}/f1.yaml"], "f1.yaml:1: causal_lm has no metric f1; it has loss, perplexity"),
        (["--study", "{tmp}/f1.yaml/study"], "f1.yaml"),
        (
            ["--data.validation", "[{{path: {tmp}/blank.jsonl, format: qa}}]", "--data.validation_fraction", "0"],
            "blank.jsonl): there is no row in it; give",
        ),
    ],
)
def test_nothing_starts_where_no_trial_could(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str, dry_run: tuple[str, ...]
) -> None:
    """A dry run refuses what a start refuses."""
    (tmp_path / "f1.yaml").write_text(f"metric: f1\ntrials: 1\nparameters:\n  {RATE}: [1]\n")
    (tmp_path / "blank.jsonl").write_text("\n  \n\n")
    line = ["recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", "learning-rate", "--study", str(tmp_path / "study")]
    assert main([*line, *(word.format(tmp=tmp_path) for word in words), *dry_run]) == 64
    assert said in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_dry_run_refuses_the_study_of_another_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text("trials: 1\n")
    line = ["recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", "learning-rate", "--study", str(tmp_path)]
    assert main([*line, "--dry_run"]) == 64
    assert "holds another search: its space.yaml differs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_help_is_quick_and_needs_no_optuna() -> None:
    code = "import sys; from train.search.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: assert not {'optuna', 'torch', 'numpy'} & set(sys.modules)"
    seconds, text = seconds_of([sys.executable, "-c", code])
    assert "--space" in text
    assert seconds < 0.5


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_draw_depends_on_seed_number_and_earlier_trials(tmp_path: Path, method: str) -> None:
    text = f"method: {method}\ntrials: 9\nparameters:\n  {RATE}: {{low: 1e-4, high: 1, log: true}}\n"
    text += "  tuning.lora.rank: {low: 4, high: 64, step: 4}\n  optim.schedule: [cosine, linear]\n"
    text += "  optim.beta1: {low: 0.5, high: 0.95, step: 0.05}\n"
    space = space_of(tmp_path, text)
    earlier: list[Record] = []
    for number in range(8):
        values = draw(space, number, earlier, 1).values
        assert values == draw(space, number, list(earlier), 1).values
        assert 1e-4 <= values[RATE] <= 1  # type: ignore[operator]
        assert values["tuning.lora.rank"] % 4 == 0  # type: ignore[operator]
        assert len(str(values["optim.beta1"])) <= 4  # 0.85, not 0.8500000000000001
        earlier.append(record(number, state="complete", value=float(number), values=values))
    assert len({json.dumps(one.values) for one in earlier}) == 8
    other = Space(SpaceConfig(method="random", seed=1), space.parameters, space.located)
    assert draw(other, 0, [], 1) != draw(space, 0, [], 1)


@pytest.mark.parametrize("method", ["random", "tpe"])
@pytest.mark.parametrize(
    ("ranges", "points"),
    [
        (f"  {RATE}: [0.1, 0.2]\n  optim.beta1: {{low: 0.1, high: 0.7, step: 0.3}}\n", 6),
        ("  tuning.lora.rank: {low: 3, high: 8, log: true}\n", 6),
        ("  tuning.lora.rank: {low: 1, high: 3}\n  optim.schedule: [cosine, linear]\n", 6),
        (f"  {RATE}: {{low: 0.10000001, high: 0.10000002}}\n", 20),
    ],
)
def test_no_point_is_drawn_twice(tmp_path: Path, method: str, ranges: str, points: int) -> None:
    """A space with fewer points than trials has each once; one whose rounded values are used up gives exact ones."""
    space = space_of(tmp_path, f"method: {method}\ntrials: 20\nstartup_trials: 2\nparameters:\n{ranges}")
    assert space.trials == points
    earlier: list[Record] = []
    for number in range(points):
        drawn = draw(space, number, earlier, 1)
        assert drawn.values not in [one.values for one in earlier]
        if drawn.repeated is not None:
            assert drawn.repeated < number
        assert drawn == draw(space, number, list(earlier), 1)
        earlier.append(record(number, state="complete", value=float(number), values=drawn.values))


def test_a_first_draw_stays_as_it_is_where_it_repeats_nothing(tmp_path: Path) -> None:
    space = space_of(tmp_path, f"method: random\ntrials: 3\nparameters:\n  {RATE}: {{low: 1e-4, high: 1, log: true}}\n")
    assert [draw(space, number, [], 1).values[RATE] for number in range(3)] == [0.655, 0.844, 0.003244]


def test_tpe_draws_near_what_was_good(tmp_path: Path) -> None:
    space = space_of(tmp_path, f"trials: 9\nparameters:\n  {RATE}: {{low: 1e-6, high: 1, log: true}}\n")
    rates = [10.0**-k for k in range(7)] * 3
    earlier = [record(k, state="complete", value=abs(rate - 1e-2), values={RATE: rate}) for k, rate in enumerate(rates)]
    drawn = [draw(space, len(earlier) + k, earlier, 1).values[RATE] for k in range(5)]
    assert sum(1e-4 < rate < 0.5 for rate in drawn) >= 4  # type: ignore[operator]


def test_halving_promotes_one_of_three_and_the_best_in_the_end() -> None:
    rungs = Rungs.of(SpaceConfig(pruner="halving", reduction=3, rungs=3))
    assert rungs.shares == pytest.approx((1 / 9, 1 / 3, 1))
    first = [record(0, 3.0), record(1, 1.0)]
    assert rungs.promotable(first, 1, all_drawn=False) is None
    assert rungs.promotable([*first, record(2, 2.0)], 1, all_drawn=False) == 1
    assert rungs.promotable([*first, record(2, 2.0)], -1, all_drawn=False) == 0
    promoted = [record(0, 3.0), record(1, 1.0, state="running", target=1), record(2, 2.0)]
    assert rungs.promotable(promoted, 1, all_drawn=True) is None
    arrived = [record(0, 3.0), record(1, 1.0, 0.9), record(2, 2.0)]
    assert rungs.promotable(arrived, 1, all_drawn=False) is None
    assert rungs.promotable(arrived, 1, all_drawn=True) == 1
    assert rungs.promotable([record(0, 3.0), record(1, state="running", target=0)], 1, all_drawn=True) is None


def test_the_last_rung_waits_for_trials_that_are_still_to_be_promoted() -> None:
    rungs = Rungs.of(SpaceConfig(pruner="halving", reduction=3, rungs=3))
    six = [record(0, 1.0, 0.9), *(record(k, 2.0 + k) for k in range(1, 6))]
    assert rungs.promotable(six, 1, all_drawn=True) == 1  # 2 of 6 go on before the best of them does
    six[1] = record(1, 3.0, 0.8)
    assert rungs.promotable(six, 1, all_drawn=True) == 1


def test_halving_begins_with_an_eighth_and_promotes_half() -> None:
    rungs = Rungs.of(SpaceConfig(pruner="halving"))
    assert rungs.shares == (1 / 8, 1 / 4, 1 / 2, 1)
    assert rungs.promotable([record(0, 3.0), record(1, 1.0)], 1, all_drawn=False) == 1


def test_hyperband_has_brackets_that_start_later() -> None:
    rungs = Rungs.of(SpaceConfig(pruner="hyperband", reduction=3, rungs=3))
    firsts = [rungs.first(number) for number in range(100)]
    assert firsts[:4] == [0, 0, 1, 0]
    assert firsts.count(0) > firsts.count(1) > firsts.count(2) > 0


def test_the_median_stops_what_is_worse_than_it() -> None:
    others = [{1: 3.0, 2: 2.0}, {1: 4.0, 2: 1.0}, {1: 5.0}]
    assert not below_median([(1, 4.0)], others, 1, startup=3)
    assert "at step 1 its best, 4.1, is worse than the median of 3 trials, 4" in below_median([(1, 4.1)], others, 1, 3)
    assert not below_median([(1, 4.1), (2, 9.0)], others, 1, startup=3)  # two have that step
    assert not below_median([(1, 1.4), (2, 9.0)], others, 1, startup=2)  # its best counts
    assert below_median([(1, 3.9)], others, -1, startup=3)


def test_a_claim_is_one_process_s(tmp_path: Path) -> None:
    claim = Claim.take(tmp_path / "claims" / "0001")
    assert claim is not None
    assert Claim.take(tmp_path / "claims" / "0001") is None
    claim.beat()
    claim.release()
    again = Claim.take(tmp_path / "claims" / "0001")
    assert again is not None
    again.release()
    (tmp_path / "claims" / "0001").write_text("another-host")
    assert Claim.take(tmp_path / "claims" / "0001") is None  # its heartbeat is fresh


def test_half_a_line_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    space = space_of(tmp_path, f"trials: 2\nparameters:\n  {RATE}: [1, 2]\n")
    study = Study(tmp_path, space, lower_is_better=True)
    study.add({}, {}, target=0)
    with (tmp_path / "journal.log").open("a") as journal:
        journal.write('{"op_code": 8, "trial_id"')
    again = Study(tmp_path, space)
    again.end(0, "complete", 1.0, "all steps done", steps=3)
    (found,) = Study(tmp_path, space).records()
    assert (found.state, found.value, found.steps) == ("complete", 1.0, 3)


def test_a_dry_run_prints_the_trials_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"method: grid\npruner: halving\nparameters:\n  {RATE}: [1e-3, 1e-2, 1e-1]\n")
    words = ["recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", str(path), "--study", str(tmp_path / "study")]
    assert main([*words, "--dry_run", "--duration.max_steps", "9"]) == 0
    said = capsys.readouterr().out
    assert "| 2 | 0.1 | 9 |" in said
    assert "Total: 27 steps if every trial trains to its end; the first rungs need 3," in said
    assert not (tmp_path / "study").exists()


def test_a_dry_run_prints_no_point_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"method: random\ntrials: 9\nparameters:\n  {RATE}: [0.1, 0.2, 0.3, 0.4]\n")
    assert main(["recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", str(path), "--dry_run"]) == 0
    said = capsys.readouterr().out
    rows = [line.split(" | ")[1] for line in said.splitlines() if re.match(r"\| \d", line)]
    assert sorted(rows) == ["0.1", "0.2", "0.3", "0.4"]
    assert "The space has only 4 points, so there are 4 trials, not 9." in said


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (f"trials: 3\nparameters:\n  {RATE}: [0.1]\n", "The space has only 1 point, so there is 1 trial, not 3."),
        (
            f"trials: 2\nstartup_trials: 1\nparameters:\n  {RATE}: [0.1, 0.2]\n",
            "The other 1 trial depends on the results of these.",
        ),
    ],
)
def test_a_dry_run_counts_one_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(space)
    words = ["recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", str(tmp_path / "space.yaml")]
    assert main([*words, "--study", str(tmp_path / "study"), "--dry_run"]) == 0
    assert said in capsys.readouterr().out


def test_importances_compare_all_trials_at_one_share_of_the_steps(tmp_path: Path) -> None:
    """Trials of later brackets pass the first rung without a stop; their values there come from their validations."""
    ranges = f"  {RATE}: {{low: 0, high: 1}}\n  optim.beta1: {{low: 0.1, high: 0.9}}\n"
    space = space_of(tmp_path, f"trials: 4\npruner: hyperband\nrungs: 3\nparameters:\n{ranges}")
    study = Study(tmp_path, space, lower_is_better=True)
    curve = {2: 4.0, 4: 5.0, 8: 1.0}
    found = [
        record(0, 4.0, steps=2, validations={2: 4.0}),
        record(1, 4.0, 4.0, steps=4, validations={2: 4.0, 4: 5.0}),
        record(2, 1.0, 1.0, steps=8, validations={1: 9.0, 3: 7.0, **curve}),
        record(3, steps=8, state="complete", value=1.0, validations=curve),
        record(4, steps=1, state="failed", validations={1: 9.0}),
    ]
    for one in found:
        study.trial_folder(one.number).mkdir(parents=True)
        (study.trial_folder(one.number) / "run.json").write_text('{"total_steps": 8}')
    assert [(one.number, value) for one, value in report._compared(study, found)] == [(k, 4.0) for k in range(4)]


def test_a_dry_run_of_tpe_prints_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"trials: 7\nparameters:\n  {RATE}: {{low: 1e-4, high: 1, log: true}}\n")
    command = [sys.executable, "-m", "train.search", "recipes/sft-full.yaml", "--space", str(path), "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "The other 2 trials depend on the results of these." in done.stdout
    assert done.stderr == ""


def curve_trial(number: int, value: float | None, state: str = "complete") -> Record:
    return record(number, state=state, value=value, target=0, validations={1: 3.0, 2: value or 2.5})


@pytest.mark.parametrize(
    ("trials", "legend"),
    [
        (
            [curve_trial(0, 2.0), curve_trial(1, 1.5), curve_trial(2, 2.2, "pruned"), curve_trial(3, None, "failed")],
            ["trial 1: 1.5", "trial 0: 2", "trial 2: 2.2 (pruned)", "trial 3 (failed)"],
        ),
        (
            [*(curve_trial(k, 2.0 + k) for k in range(7)), *(curve_trial(k, 9.0, "pruned") for k in range(7, 30))],
            [*(f"trial {k}: {2 + k}" for k in range(5)), "2 others, complete", "23 others, pruned"],
        ),
    ],
)
def test_the_legend_names_few_trials_all_and_of_many_the_best(trials: list[Record], legend: list[str]) -> None:
    figure = figures._curves(trials, min(trials, key=lambda r: r.value or 9.0), "loss", 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == legend
    lines = figure.axes[0].get_lines()
    assert len(lines) == len(trials)
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(legend)
