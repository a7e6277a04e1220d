"""Whole evaluations of tiny checkpoints: numbers against the plain way, the files that are left, what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eval import evaluation
from eval.cached_model import open_answer_cache
from eval.config import Config, parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.main import main
from eval.report import markdown, show, write
from eval.report.notes import circumstances, warnings
from eval.result import SCHEMA, SCHEMA_VERSION, Evaluation, Subsample
from eval.tasks import TASKS
from tests.support import eval_checkpoints
from tests.support.eval_checkpoints import TEXT
from zerotune.common.errors import CannotWriteError, UserError
from zerotune.common.metric_format import SCALES
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.models.run_facts import RunFacts

ALONE = Ranks(0, 1, torch.device("cpu"))
QUESTIONS = [
    {"question": f"What is {k}?", "answer": answer} for k, answer in enumerate(["Paris", "北京。", "a dog"] * 3)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "before": eval_checkpoints.save(root / "before", seed=0),
        "after": eval_checkpoints.save(root / "after", seed=1),
        "base": eval_checkpoints.save(root / "base", seed=0, template=None),
    }


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A short text, one of more than twice the context of 128 tokens, and one of a single token."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TEXT[0], " ".join(TEXT * 5), "x"]))
    return str(path)


def run(*words: Any) -> Evaluation:
    return evaluate(parse([*map(str, words), "--precision", "fp32", "--max_new_tokens", "6"]), ALONE)


def plain_perplexity(folder: Path, prompts_and_answers: list[tuple[str, str]]) -> float:
    network, words = AutoModelForCausalLM.from_pretrained(folder).eval(), eval_checkpoints.tokenizer()
    total, count = 0.0, 0
    for prompt, answer in prompts_and_answers:
        given, said = words(prompt)["input_ids"], words(answer)["input_ids"]
        scored = eval_checkpoints.log_probs(network, given + said)[len(given) - 1 :]
        total, count = total - float(scored.sum()), count + len(scored)
    return math.exp(total / count)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_perplexity_of_answers_equals_the_plain_loop(folders: dict[str, Path], rows: str, batch_tokens: int) -> None:
    found = run("--model", folders["before"], "--tasks", "perplexity", "--data", rows, "--batch_tokens", batch_tokens)
    expected = plain_perplexity(
        folders["before"],
        [
            (f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n", f"{row['answer']}<|im_end|>")
            for row in QUESTIONS
        ],
    )
    assert found.result.tasks[0].metrics[0].estimates[0].value == pytest.approx(expected, rel=1e-6)


def test_perplexity_of_long_texts_scores_every_token_once(folders: dict[str, Path], texts: str) -> None:
    found = run("--model", folders["before"], "--tasks", "perplexity", "--data", texts)
    (task,) = found.result.tasks
    assert [row.id.rpartition("/")[2] for row in task.skipped] == ["texts.jsonl:3"]
    network = AutoModelForCausalLM.from_pretrained(folders["before"]).eval()
    words = eval_checkpoints.tokenizer()
    short, long = (words(text)["input_ids"] for text in [TEXT[0], " ".join(TEXT * 5)])
    nll, done = -float(eval_checkpoints.log_probs(network, short).sum()), 1
    for end in [*range(128, len(long), 64), len(long)]:
        nll -= float(eval_checkpoints.log_probs(network, long[end - 128 : end])[-(end - done) :].sum())
        done = end
    count = len(short) + len(long) - 2
    assert sum(sample.values["tokens"] for sample in found.samples["perplexity"]["before"]) == count
    assert task.metrics[0].estimates[0].value == pytest.approx(math.exp(nll / count), rel=1e-6)


def test_two_checkpoints_are_compared_and_all_files_written(
    folders: dict[str, Path], rows: str, tmp_path: Path
) -> None:
    words = [
        "--baseline",
        folders["before"],
        "--model",
        folders["after"],
        "--tasks",
        "perplexity,qa,samples",
        "--data",
        rows,
    ]
    found = run(*words)
    write(found, tmp_path / "out")
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    models = ["after", "before"]
    assert left == sorted(
        ["metrics.png", "report.html", "report.md", "result.json"]
        + [f"tensorboard/{model}/events.out.tfevents.000001" for model in models]
        + [f"samples/{task}.{model}.jsonl" for task in ("perplexity", "qa", "samples") for model in models]
    )
    change = found.result.tasks[0].metrics[0].differences[0]
    before, after = (found.samples["perplexity"][name] for name in ("before", "after"))
    won = sum(b.values["nll"] > a.values["nll"] for b, a in zip(before, after, strict=True))
    assert (change.won, change.lost, change.tied) == (won, len(QUESTIONS) - won, 0)
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.splitlines()[2].startswith("- perplexity: ")
    assert "![" in report
    lines = (tmp_path / "out" / "samples" / "qa.after.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reference"] for line in lines] == [row["answer"] for row in QUESTIONS]


def test_a_checkpoint_against_itself_is_a_tie(folders: dict[str, Path], rows: str) -> None:
    found = run("--model", folders["before"], "--model", folders["before"], "--tasks", "perplexity,qa", "--data", rows)
    for task in found.result.tasks:
        for metric in task.metrics:
            (change,) = metric.differences
            assert (change.value, change.won, change.lost) == (SCALES[metric.scale].no_change, 0, 0)
            assert change.verdict == "no significant difference"


def test_speed_excludes_cached_answers(folders: dict[str, Path], rows: str) -> None:
    found = run("--model", folders["before"], "--tasks", "qa,rouge", "--data", rows).result
    qa, rouge = found.tasks
    assert qa.tokens["before"] > 10 * len(QUESTIONS)
    assert (qa.reused["before"], rouge.tokens["before"], rouge.reused["before"]) == (0, 0, len(QUESTIONS))
    lines = circumstances(found)
    assert any(line.startswith("qa version") and re.search(r"rows/s, [\d,]+ tokens/s\)$", line) for line in lines)
    assert any(line.startswith("rouge") and line.endswith(f"s ({len(QUESTIONS)} answers cached)") for line in lines)
    assert any("cached answers (from the journal or another task) do not count" in line for line in lines)


SHAPE: dict[str, Any] = {
    "schema": str, "schema_version": int, "created": str, "settings": dict, "versions": dict, "encoder": type(None),
    "code": dict | None,
    "models": [{
        "name": str, "path": str, "precision": str, "context_tokens": int, "digests": dict, "origin": dict | None,
        "template_date": str | None, "system_prompt": str,
    }],
    "tasks": [{
        "name": str, "version": int, "data": dict, "samples": int, "seconds": dict, "tokens": dict, "reused": dict,
        "skipped": [{"id": str, "reason": str}], "tables": dict, "cut_short": dict, "only_reasoning": dict,
        "template_problems": dict, "left_out": list,
        "fewer": {"rows": int, "of_rows": int, "files": int, "of_files": int},
        "contamination": {
            "training": dict, "missing": [str], "found": [{"id": str, "how": str, "place": str}],
            "clean": int, "metrics": list,
        },
        "metrics": [{
            "name": str, "level": str, "higher_is_better": bool, "is_share": bool, "scale": str,
            "estimates": [{
                "model": str, "value": float, "low": float | None, "high": float | None, "method": str | None,
                "reason": str | None,
            }],
            "differences": [{
                "model": str, "value": float, "low": float | None, "high": float | None, "method": str | None,
                "won": int, "lost": int, "tied": int, "verdict": str,
                "test": str | None, "p_value": float | None, "p_holm": float | None, "detectable": float | None,
                "reason": str | None,
            }],
            "groups": [{"group": str, "name": str, "samples": int, "estimates": list}],
        }],
    }],
}  # fmt: skip


def assert_shape(value: Any, shape: Any) -> None:
    if isinstance(shape, dict):
        assert set(value) == set(shape)
        for key, inner in shape.items():
            assert_shape(value[key], inner)
    elif isinstance(shape, list):
        for element in value:
            assert_shape(element, shape[0])
    else:
        assert isinstance(value, shape)


def test_result_json_has_its_schema(folders: dict[str, Path], rows: str, texts: str) -> None:
    words = ["--model", folders["before"], "--model", folders["after"], "--tasks", "perplexity,qa", "--data", rows]
    found = run(*words, "--training_data", texts, "--max_rows", len(QUESTIONS) - 1)
    written = json.loads(found.result.to_json())
    assert (written["schema"], written["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    assert_shape(written, SHAPE)
    assert all(len(model["digests"]["weights"]) == 64 for model in written["models"])
    assert written["models"][0]["digests"]["weights"] != written["models"][1]["digests"]["weights"]


def test_the_documentation_names_every_field_of_result_json() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    fields = {*re.findall(r"'(\w+)':", str(SHAPE)), *(field.name for field in dataclasses.fields(RunFacts))}
    assert len(fields) > 20
    assert not [field for field in fields if f"`{field}`" not in text]


def test_result_has_the_versions_of_libraries(
    folders: dict[str, Path], rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLEU moves with sacrebleu, Chinese words with jieba; what is not installed is left out."""
    words = ["--model", folders["before"], "--tasks", "qa", "--data", rows]
    versions = run(*words).result.versions
    assert {"zerotune", "python", "torch", "transformers", "tokenizers", "numpy"} <= set(versions)
    assert versions["sacrebleu"] == importlib.metadata.version("sacrebleu")
    assert versions["jieba"] == importlib.metadata.version("jieba")
    monkeypatch.setattr(evaluation, "LIBRARIES", ("torch", "a-library-that-nobody-has"))
    assert set(run(*words).result.versions) == {"zerotune", "python", "torch"}


def test_a_single_row_has_no_interval(folders: dict[str, Path], rows: str) -> None:
    words = ["--model", folders["before"], "--model", folders["after"], "--tasks", "perplexity", "--data", rows]
    found = run(*words, "--max_rows", 1)
    metric = found.result.tasks[0].metrics[0]
    assert metric.estimates[0].low is None
    assert metric.differences[0].verdict == "not tested"
    assert "not tested" in markdown(found)


def test_max_rows_takes_rows_of_every_corpus(folders: dict[str, Path], texts: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"{k} {TEXT[0]}"}) + "\n" for k in range(4)))
    words = ["--model", folders["before"], "--tasks", "perplexity", "--data", texts, "--data", other]
    found = run(*words, "--max_rows", 3)
    report = markdown(found)
    (task,) = found.result.tasks
    assert {group.name for group in task.metrics[0].groups} == {"texts", "other"}
    assert "By corpus" in report
    note = "perplexity: 3 of 7 rows used (--max_rows), the first ones of each of 2 files in turn"
    assert note in report
    assert task.fewer == Subsample(rows=3, of_rows=7, files=2, of_files=2)
    assert run(*words).result.tasks[0].fewer is None


def test_rows_without_scored_tokens_are_one_message(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": TEXT[0][:1]}))
    with pytest.raises(UserError, match=r"all rows were skipped, the first because it has nothing to score$"):
        run("--model", folders["before"], "--tasks", "perplexity", "--data", path)


def test_a_prompt_longer_than_the_context_is_skipped(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long = {"question": " ".join(TEXT * 4), "answer": "yes"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*QUESTIONS[:2], long]))
    found = run("--model", folders["before"], "--tasks", "qa", "--data", path)
    (task,) = found.result.tasks
    assert task.samples == 2
    assert [row.id for row in task.skipped] == [f"{path}:3"]
    assert task.skipped[0].reason.endswith("tokens, more than the context of 128")
    assert "1 row left out of these numbers" in markdown(found)
    path.write_text(json.dumps(long))
    with pytest.raises(UserError, match=r"the first because it needs [0-9]+ tokens, more than the context of 128$"):
        run("--model", folders["before"], "--tasks", "qa", "--data", path)


def test_rows_whose_system_message_the_template_drops_are_counted(tmp_path: Path) -> None:
    template = eval_checkpoints.CHATML.replace("in messages %}", "in messages if message.role != 'system' %}")
    model, path = eval_checkpoints.save(tmp_path / "drops", template=template), tmp_path / "rows.jsonl"
    rows = [QUESTIONS[0], *({**row, "system": "Be brief."} for row in QUESTIONS[1:3])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("--model", model, "--tasks", "qa,perplexity", "--data", path)
    problem = "the chat template leaves out what the system says"
    for task in found.result.tasks:
        assert task.template_problems == {"drops": {problem: [f"{path}:2", f"{path}:3"]}}
    note = f"in 2 of 3 rows {problem}; the first is {path}:2"
    assert f"qa, drops; perplexity, drops: {note}" in warnings(found.result)
    assert "in 2 of 3 rows the chat template leaves out" in markdown(found)
    console = Console(record=True, width=200)
    show(found.result, console)
    assert "in 2 of 3 rows the chat template leaves out" in console.export_text()


def test_an_answer_that_the_context_ends_is_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its prompt fits, and leaves room for less than --max_new_tokens."""
    tokenizer, path = eval_checkpoints.tokenizer(), tmp_path / "rows.jsonl"

    def prompt_tokens(question: str) -> int:
        asked = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        return len(asked["input_ids"])

    long = max((" ".join(TEXT * 4)[:size] for size in range(10, 400)), key=lambda q: (prompt_tokens(q) <= 125, len(q)))
    assert 123 <= prompt_tokens(long) <= 125, "3 to 5 of 6 tokens"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*QUESTIONS[:2], {"question": long, "answer": "yes"}]))
    found = run("--model", folders["before"], "--tasks", "qa", "--data", path)
    (task,) = found.result.tasks
    assert (task.samples, task.skipped) == (3, [])
    assert task.cut_short == {"before": [f"{path}:3"]}
    assert "the context was too short for the rest of the answer, or the next turn" in markdown(found)


def test_a_later_turn_without_room_is_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    short = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}] * 2
    long = [*short[:2], {"role": "user", "content": " ".join(TEXT * 4)}, short[1]]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (short, long)))
    found = run("--model", folders["before"], "--tasks", "dialogue", "--data", path, "--max_new_tokens", "2")
    (task,) = found.result.tasks
    assert (task.samples, task.skipped) == (2, [])
    assert task.cut_short == {"before": [f"{path}:2"]}
    assert "the next turn, try or tool call, of 1 row" in markdown(found)
    (turns,) = task.tables["before"]
    assert [row[-1] for row in turns.rows] == [0, 1]


def test_cached_answers_are_reported_once_per_task(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each turn of a dialogue is a round of its own."""
    path = tmp_path / "rows.jsonl"
    said = [{"role": role, "content": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    path.write_text(json.dumps({"messages": said}) + "\n")
    words = ["--model", folders["before"], "--tasks", "dialogue", "--data", path, "--out", tmp_path / "out"]
    config = parse([*map(str, words), "--max_new_tokens", "2"])
    evaluate(config, ALONE, open_answer_cache(config, ALONE))
    capsys.readouterr()
    again = evaluate(config, ALONE, open_answer_cache(config, ALONE))
    assert again.result.tasks[0].reused == {"before": 3}
    assert capsys.readouterr().err == "before: dialogue: 1 of 1 answers from the journal\n"


def test_answers_of_this_evaluation_are_not_reported_as_cached(
    folders: dict[str, Path], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same checkpoint twice: the second asks nothing anew."""
    words = ["--model", str(folders["before"]), "--model", str(folders["before"]), "--tasks", "qa", "--data", rows]
    config = parse([*words, "--out", str(tmp_path / "fresh")])
    result = evaluate(config, ALONE, open_answer_cache(config, ALONE)).result
    assert list(result.tasks[0].reused.values())[1] > 0
    assert "journal" not in capsys.readouterr().err


def test_markdown_in_answers_stays_text(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "# A | B\n<script>", "answer": "*x*"}))
    report = markdown(run("--model", folders["before"], "--tasks", "qa", "--data", path))
    assert r"# A \| B \<script\>" in report
    assert r"\*x\*" in report


def damaged(folders: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in folders["before"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("template", ["raw", "file"])
def test_a_base_model_takes_a_template_from_the_command_line(
    folders: dict[str, Path], rows: str, template: str
) -> None:
    words = ["--model", folders["base"], "--tasks", "qa", "--data", rows]
    with pytest.raises(UserError, match="no chat template"):
        run(*words)
    choice = "raw" if template == "raw" else folders["after"] / "chat_template.jinja"
    assert run(*words, "--template", choice).result.tasks[0].samples == len(QUESTIONS)


def test_user_errors_come_before_weights_are_loaded(folders: dict[str, Path], rows: str, tmp_path: Path) -> None:
    folder = damaged(folders, tmp_path)
    save_file({"never.read": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        run("--model", folder, "--tasks", "qa", "--data", rows)


def test_missing_weights_are_refused(folders: dict[str, Path], rows: str, tmp_path: Path) -> None:
    folder = damaged(folders, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        run("--model", folder, "--tasks", "qa", "--data", rows)


def test_truncated_weights_are_refused(folders: dict[str, Path], rows: str, tmp_path: Path) -> None:
    folder = damaged(folders, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a complete safetensors file"):
        run("--model", folder, "--tasks", "qa", "--data", rows)


def test_folders_that_are_no_checkpoints_are_named(folders: dict[str, Path], rows: str, tmp_path: Path) -> None:
    folder = damaged(folders, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        run("--model", folder, "--tasks", "qa", "--data", rows)
    (folder / "pytest.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytest\.bin is not read, since such a file can run code"):
        run("--model", folder, "--tasks", "qa", "--data", rows)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        run("--model", folder, "--tasks", "qa", "--data", rows)
    with pytest.raises(UserError, match="no such folder"):
        run("--model", tmp_path / "nowhere", "--tasks", "qa", "--data", rows)


def test_generation_settings_of_a_checkpoint_change_no_answer(
    folders: dict[str, Path], rows: str, tmp_path: Path
) -> None:
    folder = damaged(folders, tmp_path)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": [0]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    plain, changed = (run("--model", f, "--tasks", "qa", "--data", rows) for f in (folders["before"], folder))
    assert [s.shown for s in plain.samples["qa"]["before"]] == [s.shown for s in changed.samples["qa"]["damaged"]]


def test_main_prints_one_message_and_its_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--model", str(tmp_path), "--tasks", "nonsense", "--data", "x"]) == UserError.exit_code
    assert capsys.readouterr().err.splitlines() == [
        f"error: unknown task nonsense; use {', '.join(TASKS)}, or a task file: FILE.yaml",
    ]


def test_a_folder_that_cannot_be_written_is_an_error(folders: dict[str, Path], rows: str, tmp_path: Path) -> None:
    found = run("--model", folders["before"], "--tasks", "qa", "--data", rows, "--max_rows", 1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CannotWriteError, match="out"):
        write(found, tmp_path / "out")


def test_the_configuration_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Config().model = []  # type: ignore[misc]


def trained_with(folder: Path, template: str) -> None:
    facts = {"template_hash": hashlib.sha256(template.encode()).hexdigest() if template else ""}
    (folder / "run.json").write_text(json.dumps(facts))


def test_another_template_than_in_training_is_refused(rows: str, tmp_path: Path) -> None:
    folder = eval_checkpoints.save(tmp_path / "merged")
    words = ["--model", folder, "--tasks", "qa", "--data", rows]
    trained_with(folder, eval_checkpoints.CHATML)
    allowed = run(*words)
    with pytest.raises(UserError, match=r"merged: .* trained with another chat template .* --template raw \(none\)"):
        run(*words, "--template", "raw")
    trained_with(folder, "{{ messages }}")
    with pytest.raises(UserError, match=r"--template tokenizer .* --allow_other_template true"):
        run(*words)
    assert run(*words, "--allow_other_template", "true").samples == allowed.samples
    trained_with(folder, "")  # on texts alone
    assert run(*words).samples == allowed.samples


@pytest.mark.parametrize("task", ["qa", "dialogue"])
def test_a_conversation_that_the_template_rejects_is_named(task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The first turn of a dialogue is fine; the second one is asked after an answer."""
    template, path = tmp_path / "strict.jinja", tmp_path / "rows.jsonl"
    late_system = (
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('a late system message') }}{% endif %}"
    )
    template.write_text("{% for m in messages %}" + late_system + "<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    roles = ("user", "assistant", "system", "user", "assistant")
    path.write_text(json.dumps({"messages": [{"role": role, "content": "dog"} for role in roles]}))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*rejects this conversation: a late system message"):
        run("--model", folders["before"], "--tasks", task, "--data", path, "--template", template)


def test_texts_need_no_template(texts: str, tmp_path: Path) -> None:
    folder = eval_checkpoints.save(tmp_path / "merged")
    trained_with(folder, "{{ messages }}")
    assert run("--model", folder, "--tasks", "perplexity", "--data", texts).result.tasks[0].samples == 2


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_weights_in_fewer_bits(rows: str, tmp_path: Path, quantization: str) -> None:
    words = eval_checkpoints.tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    command = ["--model", tmp_path / "model", "--tasks", "perplexity", "--data", rows]
    whole, fewer = (run(*command, "--quantization", bits).result.tasks[0].metrics[0] for bits in ("none", quantization))
    assert fewer.estimates[0].value != whole.estimates[0].value
    assert fewer.estimates[0].value == pytest.approx(whole.estimates[0].value, rel=0.1)
    loaded: Any = open_checkpoint(str(tmp_path / "model"), "m").load(
        "language", "fp32", quantization, torch.device("cpu")
    )
    packs = [getattr(part, "support_avx512bf16_for_cpu", False) for part in loaded.network.model.modules()]
    assert not any(packs)  # bitsandbytes would pack 4-bit weights anew there, and lose digits


def test_quantization_without_bitsandbytes_is_one_message(
    folders: dict[str, Path], rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--quantization nf4: bitsandbytes is not installed"):
        run("--model", folders["before"], "--tasks", "perplexity", "--data", rows, "--quantization", "nf4")
