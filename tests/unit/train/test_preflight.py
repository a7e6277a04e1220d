"""Wrong paths, files and columns: told at once, all together, before torch is imported; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.config import parse as parse_eval
from eval.preflight import check_inputs as check_evaluation
from tests.support.quantized_bases import set_config
from train.config import Config
from train.preflight import check_inputs
from train.recipe import parse
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 20.0  # of one that takes less than a second on an idle machine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model, as far as it is looked at."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 3)
    return path


def config(model: Path, rows: Path, *options: str) -> Config:
    given = {option.split("=")[0] for option in options}
    usual = {
        "model.path": model,
        "data.train": f"[{{path: {rows}, format: qa}}]",
        "run.folder": model.parent / "runs" / "x",
    }
    words = [f"--{key}={value}" for key, value in usual.items() if key not in given]
    return parse([*words, *(f"--{option}" for option in options)])


def refusal(model: Path, rows: Path, *options: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_inputs(config(model, rows, *options))
    return str(caught.value).replace(str(model.parent), "").splitlines()


def test_valid_inputs_pass(model: Path, rows: Path) -> None:
    check_inputs(config(model, rows))
    check_inputs(config(model, rows, "data.validation=[{path: org/name, format: qa}]"))  # of the hub: not looked at
    check_inputs(config(model, rows, "model.path=org/name"))


def test_all_input_problems_are_reported_at_once(model: Path, rows: Path) -> None:
    missing = model.parent / "row.jsonl"
    lines = refusal(
        model,
        rows,
        f"model.path={model}s",
        f"data.train=[{{path: {missing}, format: qa}}]",
        "data.chat_template=llama3",
    )
    assert lines == [
        "model.path: there is no folder /bases; did you mean /base?",
        "data.chat_template: unknown template `llama3`; known are tokenizer, plain, chatml, raw, or a .jinja file; a"
        " model's own template is the default, tokenizer",
        "data.train[0].path: /row.jsonl: no such file, folder or glob; did you mean /rows.jsonl?",
    ]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "model.path: /base: there is no config.json; a checkpoint folder"),
        (lambda f: (f / "config.json").write_text("{"), "model.path: /base/config.json: cannot be read as JSON"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.path: /base: no model.safetensors, so it holds no weights",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "/base/model.safetensors: not a complete safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin"),
        (lambda f: (f / "tokenizer.json").unlink(), "model.path: /base: has no tokenizer (tokenizer.json)"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "contains an adapter (adapter_config.json)"),
        (
            lambda f: set_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
            "model.path: /base/config.json: its weights are quantised by gptq (quantization_config), which is not read",
        ),
    ],
)
def test_incomplete_model_folders_are_reported(model: Path, rows: Path, broken: Any, message: str) -> None:
    broken(model)
    [line] = refusal(model, rows)
    assert message in line


def test_quantised_base_is_not_quantised_again(model: Path, rows: Path) -> None:
    set_config(model, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    check_inputs(config(model, rows))
    [line] = refusal(model, rows, "tuning.kind=lora", "tuning.quantization=nf4")
    assert line.startswith("tuning.quantization: nf4 cannot be put on /base, whose weights are quantised already (fp8)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.tokenizer={0}/none"], "model.tokenizer: there is no folder /none"),
        (["model.path={0}/rows.jsonl"], "model.path: /rows.jsonl is a file; name its folder"),
        (
            ["objective=ppo", "ppo.reward=[{{kind: model, path: {0}/judge}}]"],
            "ppo.reward[0].path: there is no folder /judge",
        ),
        (
            ["objective=ppo", "ppo.reward=[{{kind: length}}]", "ppo.value_model={0}/judge"],
            "ppo.value_model: there is no folder /judge",
        ),
        (["data.validation=[{{path: {0}/v.jsonl, format: qa}}]"], "data.validation[0].path: /v.jsonl: no such file"),
        (["run.folder={0}/rows.jsonl/x"], "run.folder: /rows.jsonl/x cannot be made: /rows.jsonl is a file"),
        (["data.chat_template={0}/t.jinja"], "data.chat_template: /t.jinja cannot be read: No such file"),
    ],
)
def test_other_paths(model: Path, rows: Path, options: list[str], message: str) -> None:
    [line] = refusal(model, rows, *(option.format(model.parent) for option in options))
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "source", "message"),
    [
        (
            "a.jsonl",
            '{"frage": "x"}\n{"frage": "y", "antwort": "z"}\n',
            "format: qa",
            "in every row (first 2 rows). Its columns are: frage, antwort. Map",
        ),
        ("a.csv", "q;a\n1;2\n", "format: qa", "a.csv:1: not valid CSV: the columns seem to be separated by ';'"),
        ("a.csv", "题目,答案\n北京是哪里,中国\n".encode("gb18030"), "format: qa", "set encoding: gb18030)"),
        ("a.csv", "question,answer,split\nx,y,test\n", "format: qa, filter: {splt: test}", "no column `splt`; the"),
        (
            "a.jsonl",
            '{"question": "x", "answer": "y", "sys ": "z"}\n',
            "format: qa, columns: {system: syss}",
            "data.train[0].columns.system: there is no column `syss`; did you mean `sys `? The columns are",
        ),
        (
            "a.csv",
            "frage,answer\nx,y\n",
            "format: qa, columns: {question: Frage}",
            "data.train[0].columns.question: there is no column `Frage`; did you mean `frage`? The columns are",
        ),
        ("a.jsonl", "not json\n", "format: qa", "not valid JSON"),
        ("a.parquet", "x", "format: qa", "not a Parquet file"),
        (
            "a.csv",
            "question,answer\nx,y\n北京,中国\n".encode("gb18030"),
            "format: qa",
            "data.train[0]: 1 of the first 2 rows cannot be used:\n  /a.csv:3: not UTF-8: byte 0xb1 at column 1"
            " (it seems to be gb18030: set encoding: gb18030)\nFix them, or skip them with data.on_bad_row: skip",
        ),
    ],
)
def test_first_rows(model: Path, rows: Path, name: str, content: str | bytes, source: str, message: str) -> None:
    path = model.parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in "\n".join(refusal(model, rows, f"data.train=[{{path: {path}, {source}}}]"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "question,answer\n"), ("a.txt", ""), ("a", "")],
)
def test_a_source_without_rows(model: Path, rows: Path, name: str, content: str) -> None:
    """A file, or a folder of empty files. One of several streamed sources may have none for now."""
    path = model.parent / name
    if name == "a":
        path.mkdir()
    for file in [path / "1.jsonl", path / "2.jsonl"] if name == "a" else [path]:
        file.write_text(content)
    source = f"{{path: {path}, format: {'text' if name == 'a.txt' else 'qa'}}}"
    said = f"(/{name}): there is no row in it; give a file with rows"
    assert refusal(model, rows, f"data.validation=[{source}]") == [f"data.validation[0] {said}"]
    assert refusal(model, rows, f"data.train=[{source}]") == [f"data.train[0] {said}"]
    streamed = ("data.streaming=true", "duration.max_steps=1", "checkpoint.every_steps=1")
    check_inputs(config(model, rows, f"data.train=[{source}]", *streamed))


def test_skippable_bad_rows_pass_preflight(model: Path, rows: Path) -> None:
    rows.write_text("not json\n" * 200 + '{"question": "q", "answer": "a"}\n')
    check_inputs(config(model, rows, "data.on_bad_row=skip"))


def test_preflight_ignores_filtered_rows(model: Path, rows: Path) -> None:
    rows.write_text('{"other": 1, "kind": "x"}\n{"question": "q", "answer": "a", "kind": "y"}\n')
    check_inputs(config(model, rows, f"data.train=[{{path: {rows}, format: qa, filter: {{kind: y}}}}]"))


CHECK = """
import sys, time
start = time.perf_counter()
from {module} import main
code = main(sys.argv[1:])
print(code, "torch" in sys.modules, "transformers" in sys.modules, time.perf_counter() - start)
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["family=rnn", "width=10000000"],
            "rnn of width 10,000,000 with 2 layers: 400,000,020,000,000 parameters besides",
        ),
        (["family=transformer", "depth=100000"], "Lower model.width, model.layers, model.feed_forward or model.depth"),
        (["family=transformer", "feed_forward=1000000000000"], "and this machine has"),
        (["family=lstm", "layers=100000000000"], "their weights and gradients need"),
    ],
)
def test_a_new_model_that_no_memory_holds(
    model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(()))  # no GPU
    (found,) = refusal(model, rows, "model.path=", *(f"model.{option}" for option in options))
    assert found.startswith("model.width: ")
    assert said in found


def test_memory_is_counted_by_process_and_gradients(model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten layers of 4.3 GB: gradients of one process count, else the weights of all processes of this machine."""
    gib = 2**30
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=60 * gib))
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(total=0))
    gpus: list[Path] = []
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(gpus))
    options = ["model.path=", "model.family=rnn", "model.width=23170", "model.layers=10"]
    assert (
        "their weights and gradients need 80.0 GiB, and this machine has 60.0 GiB" in refusal(model, rows, *options)[0]
    )
    check_inputs(config(model, rows, *options, "tuning.kind=lora"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "their weights in 2 processes need 80.0 GiB" in refusal(model, rows, *options)[0]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_inputs(config(model, rows, *options))
    monkeypatch.delenv("WORLD_SIZE")
    gpus.append(Path("/dev/nvidia0"))
    check_inputs(config(model, rows, *options))


@pytest.mark.parametrize("kind", ["zerotune_rnn", "zerotune_lstm", "mamba"])
def test_prompt_tuning_without_attention(model: Path, rows: Path, kind: str) -> None:
    set_config(model, model_type=kind)
    (found,) = refusal(model, rows, "tuning.kind=prompt")
    lacks = f"and /base is of the type {kind}; use full or lora"
    assert found == f"tuning.kind: prompt tuning needs a model with attention, {lacks}"


def words_for(module: str, model: Path, rows: Path, out: Path) -> list[str]:
    if module == "eval.main":
        return ["--model", str(model), "--tasks", "qa", "--out", str(out), "--data", str(rows)]
    data = f"[{{path: {rows}, format: qa}}]"
    return ["--model.path", str(model), "--run.folder", str(out), "--data.train", data]


@pytest.mark.parametrize("module", ["train.main", "eval.main"])
def test_wrong_path_is_reported_without_importing_torch(tmp_path: Path, module: str) -> None:
    words = words_for(module, tmp_path / "no", tmp_path / "no.jsonl", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(module=module), *words],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    code, torch, transformers, seconds = done.stdout.split()
    assert (code, torch, transformers) == ("64", "False", "False")
    assert float(seconds) < PATIENCE_SECONDS
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "out"], "none: there is no such folder; give a run folder or one of its checkpoints"),
        (["full", "out"], "full: neither a run folder (no config.yaml) nor one of its checkpoints (no state.json)"),
        (["run", "full"], "full: exists already and is not an earlier merge; choose another folder, or remove it"),
    ],
)
def test_merge_checks_folders_before_importing_torch(tmp_path: Path, words: list[str], said: str) -> None:
    for name in ("run/config.yaml", "full/mine.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(module="train.merge.__main__"), *(str(tmp_path / word) for word in words)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split()[:3] == ["64", "False", "False"]
    assert done.stderr.startswith(f"error: {tmp_path}/{said}")


@pytest.mark.parametrize("module", ["train.main", "eval.main"])
def test_first_output_comes_before_importing_torch(tmp_path: Path, model: Path, rows: Path, module: str) -> None:
    command = [sys.executable, "-m", module, *words_for(module, model, rows, tmp_path / "run")]
    start = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr
        first, second = process.stderr.readline(), process.stderr.readline()
        took = time.monotonic() - start
        process.kill()
    assert took < PATIENCE_SECONDS
    assert str(model) in first
    assert str(tmp_path / "run") in first
    assert second == "importing libraries\n"


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (["run.json", "merged/config.json"], "this is the folder of a run; its model is /run/merged"),
        (["run.json"], "this is the folder of a run; make a model of it: python -m train.merge /run OUT"),
        (["checkpoint-5/config.json"], "there is no config.json, but there is one in /run/checkpoint-5"),
    ],
)
def test_run_folder_suggests_its_merged_model(model: Path, rows: Path, inside: list[str], said: str) -> None:
    run = model.parent / "run"
    for name in inside:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    assert refusal(model, rows, f"model.path={run}") == [f"model.path: /run: {said}"]
    with pytest.raises(UserError) as caught:
        check_evaluation(parse_eval(f"--model {run} --tasks qa --data {rows}".split()))
    assert str(caught.value).replace(str(model.parent), "") == f"/run: {said}"


def test_evaluation_reports_all_problems_at_once(tmp_path: Path, model: Path, rows: Path) -> None:
    rows.write_bytes("问题".encode("gb18030") * 20)
    words = f"--model {model}x --model {model} --tasks qa --data {rows} --training_data {tmp_path}/no.txt"
    with pytest.raises(UserError) as caught:
        check_evaluation(parse_eval(words.split()))
    first, second, third = str(caught.value).splitlines()
    assert "there is no such folder" in first
    assert "set --encoding gb18030" in second
    assert "no.txt: no such file" in third


def evaluation_refusal(words: str) -> str:
    with pytest.raises(UserError) as caught:
        check_evaluation(parse_eval(words.split()))
    return str(caught.value)


def test_evaluation_refuses_an_unusable_output_folder(tmp_path: Path, model: Path, rows: Path) -> None:
    usual = f"--model {model} --tasks qa --data {rows}"
    said = evaluation_refusal(f"{usual} --out {rows} --tensorboard {rows}/curves")
    assert said.splitlines() == [
        f"--out: {rows} cannot be made: {rows} is a file",
        f"--tensorboard: {rows}/curves cannot be made: {rows} is a file",
    ]
    check_evaluation(parse_eval(f"{usual} --out {tmp_path}/new/folder".split()))


def test_evaluation_refuses_a_missing_encoder(model: Path, rows: Path) -> None:
    said = evaluation_refusal(f"--model {model} --tasks qa --data {rows} --encoder /nope")
    assert said.startswith("--encoder: /nope: there is no such folder")


def test_evaluation_refuses_unknown_columns(tmp_path: Path, model: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("问题,答案,lang\n甲,乙,zh\nquestion,answer,en\n")
    usual = f"--model {model} --tasks qa --data {table}"
    assert "fits no known format" in (said := evaluation_refusal(usual))
    assert said.startswith(f"{table}:2: ")
    assert "its columns: 问题, 答案, lang" in said
    assert evaluation_refusal(f"{usual} --filter language=zh") == (
        "--filter: there is no column `language`; the columns are 问题, 答案, lang"
    )
    assert evaluation_refusal(f"{usual} --filter lang=en").startswith(f"{table}:3: ")
    check_evaluation(parse_eval(f"{usual} --columns question=问题 --columns answer=答案".split()))
    assert evaluation_refusal(f"{usual} --columns question=问题 --columns answer=答案 --columns system=langs") == (
        "--columns system=langs: there is no column `langs`; did you mean `lang`? The columns are 问题, 答案, lang"
    )
    check_evaluation(parse_eval(f"{usual} --filter lang=ja".split()))  # such a row may come later


def test_evaluation_checks_the_file_of_a_task(tmp_path: Path, model: Path) -> None:
    task = tmp_path / "own.yaml"
    task.write_text(
        f"name: own\nkind: generate\nprompt: '{{{{ question }}}}'\nreference: answer\ndata: {tmp_path}/no.jsonl\n"
    )
    assert "no.jsonl: no such file" in evaluation_refusal(f"--model {model} --tasks {task}")
