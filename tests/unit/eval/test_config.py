"""The command line of `eval`: options, files of options, and messages for mistakes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eval import protocols
from eval.config import Config, parse
from eval.tasks import TASKS
from tests.support.commands import seconds_of
from zerotune.common.errors import UserError
from zerotune.common.schema import fields_of
from zerotune.common.yaml_lines import dump_yaml
from zerotune.data import raw_row
from zerotune.data.fields import RowError
from zerotune.inference.requests import Generated

ROOT = Path(__file__).resolve().parents[3]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)
HEAVY = {"torch", "transformers", "numpy", "matplotlib", "jinja2"}


def test_options_reach_the_configuration() -> None:
    words = "--model a --model b --baseline c --tasks qa,perplexity,qa --data all.jsonl --data qa=own.jsonl"
    config = parse([*words.split(), "--max_rows=7", "--precision", "fp32"])
    assert config.folders == ["c", "a", "b"]
    assert config.task_names == ["qa", "perplexity"]
    assert (config.data_of("qa"), config.data_of("perplexity")) == (["own.jsonl"], ["all.jsonl"])
    assert (config.max_rows, config.precision) == (7, "fp32")


def test_several_files_are_all_read() -> None:
    config = parse("--model a --tasks qa,bleu --data a.jsonl --data b.jsonl --data bleu=c --data bleu=d".split())
    assert config.data_of("qa") == ["a.jsonl", "b.jsonl"]
    assert config.data_of("bleu") == ["c", "d"]


def test_a_file_name_may_hold_an_equals_sign() -> None:
    assert parse("--model a --tasks qa --data lr=1e-3.jsonl".split()).data_of("qa") == ["lr=1e-3.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks qa --data x", "give --model"),
        ("--model a --data x", "give --tasks"),
        ("--model a --tasks qaa --data x", "unknown task qaa; did you mean qa?"),
        ("--model a --tasks xyz --data x", "unknown task xyz; use perplexity, qa, "),
        ("--modle a --tasks qa --data x", "unknown option --modle; did you mean --model?"),
        ("--model a --tasks qa --data x --max_rows -1", "--max_rows: must be greater than or equal to 0, not -1"),
        ("--model a --tasks qa --data x --window_tokens 1", "must be 0 or at least 2"),
        ("--model a --tasks qa --data x --template nowhere.jinja", "--template nowhere.jinja"),
        ("--model a --tasks qa --data x --date 2026-02-30", "--date: must be a date like 2026-01-31, not 2026-02-30"),
        ("--model a --tasks qa --data x --date 20260131", "--date: must be a date like 2026-01-31, not 20260131"),
        ("--model a --tasks qa --data bleu=x", "--data bleu=x: bleu is not among --tasks"),
        (
            "--model a --tasks qa,bleu --data blue=x",
            "--data blue=x: there is no such file, and no task blue; did you mean bleu?",
        ),
        (
            "--model a --tasks qa --data x --columns prompts=question",
            "--columns prompts=question: no row format has a field prompts; did you mean prompt?",
        ),
        ("--model a --tasks qa --data x --temperatures 0.5", "--temperatures applies only to the task samples"),
        (
            "--model a --tasks qa --data x --sample_seed 3",
            "--sample_seed 3 applies only with --max_rows",
        ),
        ("--model a --tasks qa --data x --max_rows many", "--max_rows: expected a whole number, got 'many'"),
        ("--model a --tasks qa --data x --sample_seed x", "--sample_seed: expected a whole number or null, got 'x'"),
        (
            "--model a --tasks qa --data x --precision fp8",
            "--precision: expected one of auto, bf16, fp16, fp32, got 'fp8'",
        ),
        (
            "--model a --tasks qa --data x --allow_other_template 3",
            "--allow_other_template: expected true or false, got 3",
        ),
    ],
)
def test_a_mistake_is_one_message(words: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(words.split())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "?;" not in str(refused.value)


def test_file_options_are_parsed(tmp_path: Path) -> None:
    words = "--model a --tasks qa --data x --delimiter tab --encoding gbk"
    options = parse([*words.split(), *"--filter split=test --filter split=a=b --filter n=1".split()]).file_options
    assert (options.separator, options.encoding) == ("\t", "gbk")
    assert options.filter == {"split": ["test", "a=b"], "n": ["1"]}
    file = config_file(tmp_path, "model: m\ntasks: qa\ndata: x\nfilter: {split: [test, dev], good: true, n: null}\n")
    assert parse(["--config", file]).file_options.filter == {"split": ["test", "dev"], "good": ["true"], "n": ["null"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data x --delimiter ;;", "--delimiter: must be one character, or tab, not ';;'"),
        ("--data x --encoding gbkk", "--encoding: there is no 'gbkk'"),
        ("--data x --encoding hex", "--encoding: there is no 'hex'"),
        ("--data x --filter split", "--filter split: must be COLUMN=VALUE"),
        ("--encoding gbk", "--encoding applies to the files of --data: give that too"),
    ],
)
def test_invalid_file_options_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(["--model", "a", "--tasks", "cmmlu", *words.split()])
    assert message in str(refused.value)


def test_options_of_other_programs_get_suggestions(tmp_path: Path) -> None:
    file = config_file(tmp_path, "num_fewshot: 5\nlimit: 3\nmodell: m\nprecision: fp8\n")
    words = "--model hf --model_args pretrained=x --num-fewshot 5 --batch_size=8 --report_to x --use_cache y"
    with pytest.raises(UserError) as refused:
        parse([*words.split(), "--config", file])
    assert str(refused.value).replace(str(tmp_path), "").splitlines() == [
        "/eval.yaml:1: unknown option num_fewshot: each task sets its number of examples; for another, write a task"
        " file (docs/evaluation.md)",
        "/eval.yaml:2: unknown option limit; did you mean max_rows?",
        "/eval.yaml:3: unknown option modell; did you mean model?",
        "/eval.yaml:4: precision: expected one of auto, bf16, fp16, fp32, got 'fp8'",
        "unknown option --model_args; did you mean --model FOLDER, without pretrained=?",
        "unknown option --num-fewshot: each task sets its number of examples; for another, write a task file"
        " (docs/evaluation.md)",
        "unknown option --batch_size; did you mean --batch_tokens, which by default depends on free memory?",
        "unknown option --report_to; --help lists all",
        "unknown option --use_cache; did you mean --resume auto, which is the default: answers are kept in"
        " OUT/journal?",
    ]


def config_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "eval.yaml").write_text(text, encoding="utf-8")
    return str(tmp_path / "eval.yaml")


WHOLE = """\
baseline: base
model: [one, two]
tasks: [qa, perplexity]
data:
  qa: own.jsonl
  perplexity: [texts.jsonl, more.jsonl]
max_rows: 50
sample_seed: 42
training_data: train.jsonl
"""


def test_a_file_holds_options(tmp_path: Path) -> None:
    config = parse(["--config", config_file(tmp_path, WHOLE)])
    assert config.folders == ["base", "one", "two"]
    assert config.task_names == ["qa", "perplexity"]
    assert (config.data_of("qa"), config.data_of("perplexity")) == (["own.jsonl"], ["texts.jsonl", "more.jsonl"])
    assert (config.max_rows, config.sample_seed, config.training_data) == (50, 42, ["train.jsonl"])


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    file = config_file(tmp_path, WHOLE)
    config = parse(["--model=three", "--config", file, "--max_rows", "7", "--tasks=qa"])
    assert (config.folders, config.max_rows, config.task_names) == (["base", "three"], 7, ["qa"])
    assert config.data_of("qa") == ["own.jsonl"]
    (tmp_path / "later.yaml").write_text("model: four\nout: elsewhere\nbaseline: null\n")
    config = parse([f"--config={file}", "--config", str(tmp_path / "later.yaml")])
    assert (config.folders, config.out, config.max_rows) == (["base", "four"], "elsewhere", 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nmaks_rows: 3", "eval.yaml:2: unknown option maks_rows; did you mean max_rows?"),
        ("model: m\nmax_rows: many", "eval.yaml:2: max_rows: expected a whole number, got 'many'"),
        ("precision: fp8", "eval.yaml:1: precision: expected one of"),
        ("max_rows: [1, 2]", "eval.yaml:1: max_rows: expected a whole number, got [1, 2]"),
        ("model: [[m]]", "eval.yaml:1: model: one value is expected"),
        ("model: m\nmodel: n", "eval.yaml:2: model is given twice"),
        ("- model", "eval.yaml:1: a configuration is a mapping"),
        ("config: other.yaml", "eval.yaml:1: unknown option config"),
        (
            "model: m\ntemperatures: [0, -0.5]",
            "eval.yaml:2: temperatures[1]: must be greater than or equal to 0, not -0.5",
        ),
        ("temperatures: true", "eval.yaml:1: temperatures[0]: expected a number, got true"),
        ("temperatures: []", "eval.yaml:1: temperatures: at least one is needed"),
        ("model: m\ntasks: qaa\ndata: x", "unknown task qaa; did you mean qa?"),
    ],
)
def test_a_mistake_in_a_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(["--config", config_file(tmp_path, text)])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*fields_of(Config), "x"]), PLAIN, max_size=4))
@example({"data": {"qa": [None, {}]}, "filter": [[]]})
def test_any_file_is_accepted_or_gives_a_user_error(tmp_path: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        parse(["--config", config_file(tmp_path, dump_yaml(values)), "--max_rows", "1"])


@pytest.mark.parametrize("given", ["0 0.7 1.2", "0,0.7,1.2", "0, 0.70 1.2 -0"])
def test_temperatures_are_separated_by_spaces_or_commas(tmp_path: Path, given: str) -> None:
    words = ["--model", "m", "--tasks", "samples"]
    assert parse([*words, "--temperatures", *given.split()]).temperatures == (0.0, 0.7, 1.2)
    file = config_file(tmp_path, "temperatures: [0.3, 2]\n")
    assert parse([*words, "--config", file]).temperatures == (0.3, 2.0)
    assert parse([*words, "--temperatures", *given.split(), "--config", file]).temperatures == (0.0, 0.7, 1.2)
    assert parse(words).temperatures == (0.0, 0.7, 1.0)


@pytest.mark.parametrize("given", ["warm", "nan", "inf", "-1", ","])
def test_an_invalid_temperature_is_refused(given: str) -> None:
    with pytest.raises(
        UserError,
        match=r"--temperatures.*(expected a number|must be greater than or equal to 0|at least one is needed)",
    ):
        parse(["--model", "m", "--tasks", "samples", "--temperatures", given])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    config_file(tmp_path, WHOLE)
    with pytest.raises(UserError, match=r"no such configuration; did you mean .*/eval\.yaml\?"):
        parse(["--config", str(tmp_path / "eval.yml")])
    with pytest.raises(UserError, match="--config needs a value"):
        parse(["--config"])


def test_help_names_every_task_and_imports_nothing_heavy() -> None:
    code = "import sys; from eval.main import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(name in done.stdout for name in TASKS)
    assert not HEAVY & set(done.stdout.split("'"))


def test_a_wrong_folder_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    words = ["--model", str(tmp_path / "nowhere"), "--tasks", "qa", "--data", "x"]
    code = f"import sys; from eval.main import main\nprint(main({words!r}), {HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'}: there is no such folder")
    assert done.stdout.split() == ["64", "set()"]


def test_help_takes_less_than_a_second() -> None:
    assert seconds_of([sys.executable, "-m", "eval", "--help"])[0] < 1.0


def test_the_documented_task_works() -> None:
    """Runs the code of docs/own-task.md."""
    page = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    task = names["TASK"]
    assert isinstance(task, protocols.Task)
    item = task.load(raw_row.Row("rows.jsonl", 1, {"question": "?", "answer": "four"}))
    assert task.score(item, [Generated("five")]).values == {"same_length": 1.0}
    with pytest.raises(RowError):
        task.load(raw_row.Row("rows.jsonl", 2, {"text": "alone"}))


USUAL = ["--model", "m", "--tasks", "qa", "--data", "rows.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", ""], "--out: is empty; check the variables of the shell"),
        (["--tensorboard="], "--tensorboard: is empty"),
        (["--model", ""], "--model[1]: is empty"),
        (["--data", " "], "--data[1]: is empty"),
        (["--data", "qa="], "--data qa=: the file name is empty"),
        (["--training_data", ""], "--training_data[0]: is empty"),
        (["--filter", "=x"], "--filter =x: must be COLUMN=VALUE"),
        (
            ["perplexity"],
            "command line: 'perplexity' belongs to no option; quote values with spaces, separate lists by commas.",
        ),
        (["--out"], "command line: --out needs a value."),
        (["--allow_other_template"], "command line: --allow_other_template needs a value."),
    ],
)
def test_empty_values_and_stray_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse([*USUAL, *words])
    assert str(caught.value).startswith(message)
