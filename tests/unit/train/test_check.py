"""`train.check` finds planted faults, in every kind of rows, and says so in 80 columns, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_tools import write_jsonl
from tests.support.ranks import Solo
from train.check import duplicates
from train.check.__main__ import main
from train.check.collect import check
from train.check.findings import KINDS, Report
from train.check.load import load
from train.check.rendered import as_text, cut
from train.check.texts import flags_of, language
from train.config import CheckConfig
from train.data.label_encoder import LabelSpec
from train.data.prepare import prepare
from train.models.load import load_tokenizer
from train.recipe import parse
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TINY = str(ROOT / "examples/models/tiny-qwen2")
WORDS = (
    "river garden winter letter mountain orange silent window travel market yellow doctor music forest bridge".split()
)
HAN = "春夏秋冬山水花鸟日月星云风雨雪城市街道学校老师朋友家人音乐书本电影故事"


def sentence(seed: int, length: int = 24) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(length))


def chinese(seed: int, length: int = 30) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(HAN) for _ in range(length)) + "。"


def words(folder: Path, train: list[dict[str, Any]], form: str, *more: str, held: Any = None) -> list[str]:
    """A recipe on these rows, as a command line."""
    sources = [{"path": str(write_jsonl(folder / "train.jsonl", train)), "format": form}]
    lines = {"data": {"train": sources, "cache_folder": str(folder / "cache"), "workers": 1}, "model": {"path": TINY}}
    lines["model"]["init"] = "random"
    lines["run"] = {"folder": str(folder / "run")}
    if held:
        lines["data"]["validation"] = [{"path": str(write_jsonl(folder / "held.jsonl", held)), "format": form}]
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(lines), encoding="utf-8")
    return [str(recipe), *more]


def report_of(folder: Path, train: list[dict[str, Any]], form: str, *more: str, held: Any = None) -> Report:
    recipe, *rest = words(folder, train, form, *more, held=held)
    return check(parse(["--config", recipe, *rest]), 1000)


def counts(report: Report, is_training: bool = True) -> dict[str, int]:
    name = "data.train[0]" if is_training else "data.validation[0]"
    return {f.kind: f.count for f in report.findings if f.source == name and f.count}


def examples(report: Report, kind: str) -> list[str]:
    return [text for f in report.findings if f.kind == kind for text in f.examples]


def faulty() -> list[dict[str, Any]]:
    """Forty good rows in English and Chinese, and from line 41 on one of each fault."""
    make = (lambda k: (sentence(k), sentence(1000 + k)), lambda k: (chinese(k), chinese(1000 + k)))
    rows: list[dict[str, Any]] = [dict(zip(("question", "answer"), make[k % 2](k), strict=True)) for k in range(40)]
    near = dict(rows[0], answer=rows[0]["answer"] + " again")
    return [
        *rows,
        {"question": sentence(50)},  # 41: no answer
        {"question": sentence(51), "answer": "  "},  # 42: empty
        {"question": sentence(52, 300), "answer": "yes"},  # 43: cut to nothing
        {"question": sentence(53), "answer": sentence(54, 300)},  # 44: truncated
        {"question": rows[1]["question"], "answer": " " + rows[1]["answer"]},  # 45: equal to line 2
        near,  # 46: nearly equal to line 1
        {"question": sentence(55), "answer": "an \x1b[31m escape"},  # 47
        {"question": "schÃ¶n und grÃ¼n", "answer": "ä¸\xadæ–‡"},  # 48
        {"question": sentence(56), "answer": "QUJD" * 40},  # 49
    ]


HELD = [
    {"question": sentence(4), "answer": sentence(1004)},  # line 5 of the training data
    {"question": sentence(6), "answer": "another one"},  # its prompt is line 7's
    {"question": chinese(900), "answer": chinese(901)},
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("faulty")
    return folder, report_of(folder, faulty(), "qa", "--data.max_length_tokens", "256", held=HELD)


def test_each_planted_fault_is_found_once(found):
    _, report = found
    assert counts(report) == {
        "bad": 3, "empty": 1, "fully_masked": 1, "truncated": 1, "no_end": 1, "duplicate": 1, "near_duplicate": 1,
        "overlap": 1, "prompt_overlap": 1, "control": 1, "mojibake": 1, "long_word": 1,
    }  # fmt: skip
    assert counts(report, is_training=False) == {}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("bad", "train.jsonl:41: field `answer` is missing"),
        ("empty", "train.jsonl:42: field `answer` is empty"),
        ("fully_masked", "train.jsonl:43: nothing left to learn after truncation"),
        ("truncated", "train.jsonl:44"),
        ("no_end", "train.jsonl:44"),
        ("duplicate", "train.jsonl:45 = "),
        ("near_duplicate", "train.jsonl:46 = "),
        ("overlap", "train.jsonl:5"),
        ("prompt_overlap", "train.jsonl:7"),
        ("control", "train.jsonl:47"),
        ("mojibake", "train.jsonl:48"),
        ("long_word", "train.jsonl:49"),
    ],
)
def test_a_finding_names_file_and_line(found, kind, place):
    folder, report = found
    assert [text for text in examples(report, kind) if text.startswith(f"{folder}/{place}")]


def test_what_a_row_repeats_is_named(found):
    folder, report = found
    assert examples(report, "duplicate") == [f"{folder}/train.jsonl:45 = {folder}/train.jsonl:2"]
    assert examples(report, "near_duplicate") == [f"{folder}/train.jsonl:46 = {folder}/train.jsonl:1"]


def test_facts_agree_with_what_training_prepares(found):
    """The rows that are checked are the rows that are trained, from the same cache entry."""
    folder, report = found
    config = parse(
        ["--config", str(folder / "recipe.yaml"), "--data.max_length_tokens", "256", "--data.on_bad_row", "skip"]
    )
    corpus = prepare(config.data, load_tokenizer(config.model), 0, Solo(), LabelSpec.of(config))
    assert all("(from the cache)" in line for line in corpus.lines if line.startswith("data.train[0] "))
    train = report.sources[0]
    assert (train.rows, train.tokens) == (len(corpus.train), int(corpus.train.lengths_n.sum()))
    assert train.learned == int(corpus.train.learned_n.sum())
    assert sum(entry.train for entry in report.lengths) == len(corpus.train)
    assert train.longest == max(entry.high for entry in report.lengths) == 256
    assert sum(entry.rows for entry in report.languages) == report.language_rows == train.rows


def test_a_check_of_bad_rows_does_not_let_training_use_them(found):
    folder, _ = found
    config = parse(["--config", str(folder / "recipe.yaml"), "--data.max_length_tokens", "256"])
    with pytest.raises(UserError, match=r"3 of 49 rows cannot be used"):
        prepare(config.data, load_tokenizer(config.model), 0, Solo(), LabelSpec.of(config))


def test_packing_fills_and_shares_are_shares(found):
    _, report = found
    assert [entry.length for entry in report.packing] == [128, 256, 512, 1024, 2048, 4096]
    for entry in report.packing:
        assert 0 < entry.fill <= 1
        assert 0 <= entry.padding < 1
    assert report.packing[0].longer > 0 == report.packing[-1].longer


def test_the_command_prints_80_columns_and_writes_markdown_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = words(tmp_path, faulty(), "qa", "--data.max_length_tokens", "256", held=HELD)
    assert main([*given, "--output", str(tmp_path / "out"), "--show", "2"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "mojibake" in printed
    page = (tmp_path / "out/check.md").read_text(encoding="utf-8")
    assert "| mojibake |" in page
    assert "\x1b" not in page + printed
    values = json.loads((tmp_path / "out/check.json").read_text(encoding="utf-8"))
    assert {entry["kind"]: entry["count"] for entry in values["findings"] if entry["count"]}["bad"] == 3
    assert set(values) == {field.name for field in dataclasses.fields(Report)}
    page = (tmp_path / "out/rows.html").read_text(encoding="utf-8")
    assert page.count("<pre>") == 4
    assert f"<mark>{sentence(1000)}&lt;|im_end|&gt;</mark>" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no recipe"),
        (["RECIPE", "--output"], "--output needs a value"),
        (["RECIPE", "--output", "--show", "1"], "--output needs a value"),
        (["RECIPE", "--rows", "0"], "--rows 0: must be"),
        (["RECIPE", "--show", "-1"], "--show -1: must be"),
        (["RECIPE", "--check.duplicates", "0"], "did you mean"),
        (["RECIPE", "--check.bad", "2"], "check.bad"),
        (["RECIPE", "--outptu", "x"], "did you mean --output"),
        (["RECIPE", "--data.train.0.path", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_command_is_one_message(tmp_path, capsys, given, message):
    recipe, *_ = words(tmp_path, faulty()[:2], "qa")
    assert main([recipe if word == "RECIPE" else word for word in given]) == 64
    assert message in capsys.readouterr().err


def test_conversations_with_tools_and_reasoning(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You add."},
                {"role": "user", "content": f"{sentence(k)} {k} + 2?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": str(k + 2)},
                {"role": "assistant", "content": f"It is {k + 2}."},
            ],
            "tools": [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}],
            "source": "made",
        }
        for k in range(30)
    ]  # fmt: skip
    report = report_of(tmp_path, rows, "chat")
    assert counts(report).keys() <= {"near_duplicate"}
    (proof,) = report.proofs
    assert (proof.rows, proof.wrong, proof.tools, proof.systems) == (30, 0, 30, 30)
    (source,) = report.sources
    assert (source.rows, source.ends) == (30, ["<|im_end|>"])
    assert source.left_out["column `source`"] == 30 if "column `source`" in source.left_out else source.left_out


def test_preference_pairs(tmp_path):
    rows = [
        {"prompt": sentence(k), "chosen": sentence(100 + k, 40 if k % 4 else 5), "rejected": sentence(200 + k, 20)}
        for k in range(40)
    ]
    report = report_of(tmp_path, [*rows, rows[3]], "preference", "--objective", "reward_model")
    assert report.pairs[0].longer == pytest.approx(31 / 41)
    assert [(proof.rows, proof.wrong) for proof in report.proofs] == [(41, 0)]
    assert counts(report) == {"duplicate": 1}


def test_classes(tmp_path):
    rows = [{"sentence": f"{sentence(k)} 很好", "label": "good" if k % 5 else "bad"} for k in range(40)]
    report = report_of(tmp_path, rows, "labelled", "--objective", "sequence_classification")
    assert report.classes[0].labels == {"good": 32, "bad": 8}
    assert [(proof.rows, proof.wrong) for proof in report.proofs] == [(40, 0)]
    assert counts(report) == {}


def test_tags(tmp_path):
    rows = [{"tokens": sentence(k).split(), "tags": ["B-LOC", *["O"] * 23]} for k in range(30)]
    report = report_of(tmp_path, rows, "tagged", "--objective", "token_classification")
    assert report.classes[0].labels == {"O": 690, "B-LOC": 30}
    assert [(proof.rows, proof.wrong) for proof in report.proofs] == [(30, 0)]


def test_values_of_a_regression_and_of_numbers_in_texts(tmp_path):
    rows = [{"sentence": sentence(k), "label": k / 10} for k in range(31)]
    report = report_of(tmp_path / "a", rows, "labelled", "--objective", "regression")
    assert dataclasses.astuple(report.values[0])[1:] == (31, 0.0, 1.5, 3.0, 1)
    texts = [{"text": f"{sentence(k)} costs {k}.5 euros and weighs 0 kg"} for k in range(30)]
    new = [
        "--objective",
        "numeric",
        "--model.family",
        "transformer",
    ]
    report = report_of(tmp_path / "b", texts, "text", *new, "--model.depth", "1")
    assert (report.values[0].count, report.values[0].high, report.values[0].zeros) == (60, 29.5, 30)
    assert [(proof.rows, proof.wrong) for proof in report.proofs] == [(30, 0)]
    assert "costs 0.5 euros" in "".join(text for _, text in report.rendered[0].pieces)
    assert not (tmp_path / "b/run").exists()


def test_unknown_words_are_listed(tmp_path):
    held = [{"text": f"{sentence(k)} zebra 斑马"} for k in range(20)]
    new = ["--model.family", "rnn", "--tokenizer.kind", "word"]
    train = [{"text": sentence(100 + k)} for k in range(30)]
    report = report_of(tmp_path, train, "text", *new, held=held)
    assert counts(report, is_training=False) == {"unknown": 20}
    assert report.unknown_characters == {"zebra": 20, "斑马": 20}


def test_a_long_text_is_continued_not_truncated(tmp_path):
    rows = [{"text": sentence(k, 400)} for k in range(5)]
    report = report_of(tmp_path, rows, "text", "--data.max_length_tokens", "128")
    assert counts(report) == {}
    assert (report.sources[0].rows, report.sources[0].pieces > 5) == (5, True)


def test_held_out_rows_are_rows_of_their_source(tmp_path):
    report = report_of(tmp_path, faulty()[:40], "qa", "--data.validation_fraction", "0.25")
    assert [(source.name, source.rows) for source in report.sources] == [
        ("data.train[0]", 30),
        ("data.train[0] held out", 10),
    ]


def test_a_stream_is_checked_up_to_a_number_of_rows(tmp_path):
    stream = ["--data.streaming", "true", "--duration.max_steps", "4", "--checkpoint.every_steps", "2"]
    recipe, *rest = words(tmp_path, faulty()[:40], "qa", *stream, "--data.streaming_window_rows", "10")
    config = parse(["--config", recipe, *rest])
    report = check(config, 20)
    assert report.sources[0].rows == 20
    assert [line for line in report.notes if "only the first 20 rows" in line]
    report = check(config, 100)
    assert report.sources[0].rows == 40
    assert not [line for line in report.notes if "only the first" in line]


def test_near_duplicates_are_found_and_a_common_system_prompt_is_none(tmp_path):
    """Half of the pairs differ in a word or two; all rows share a long system prompt."""
    long = sentence(9999, 150)
    rows = [{"question": sentence(k, 40), "answer": sentence(500 + k, 40)} for k in range(200)]
    changed = [dict(rows[k], answer=rows[k]["answer"].replace("river", "rivers", 1) + " end") for k in range(100)]
    recipe, *rest = words(tmp_path, [*rows, *changed], "qa", "--data.system_prompt", long)
    loaded = load(parse(["--config", recipe, *rest]), 1000)
    near_n = duplicates.near_duplicates(loaded.of(True))
    assert np.array_equal(near_n[:200], np.full(200, -1))
    assert (near_n[200:] == np.arange(100)).mean() > 0.95


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("L’été à la plage — «très bon»", 0),
        ("Đây là tiếng Việt, có dấu", 0),
        ("今天天气很好。", 0),
        ("α ≤ β → ∀x∈ℝ, Привет мир", 0),
        ("tabs\tand\nlines\r\n", 0),
        ("bell \x07", 1),
        ("schÃ¶n, Ã¼ber", 2),
        ("锟斤拷", 2),
        ("a \ufffd b", 2),
        ("x" * 100, 4),
        ("长" * 200, 0),
    ],
)
def test_flags_of_texts(text, flags):
    assert flags_of([text]) == flags


def test_languages():
    assert language(sentence(1, 1)) == "short"
    assert language("今天天气很好，我们去公园散步吧，那里有很多花和树。") == "zh"
    assert language("Der schnelle braune Fuchs springt über den faulen Hund und schläft dann ein.") == "de"


def test_limits_fail_the_check(tmp_path, capsys):
    given = words(tmp_path, faulty(), "qa", "--data.max_length_tokens", "256")
    limits = ["--check.duplicate", "0.03", "--check.mojibake", "0", "--check.control", "0.1", "--check.overlap", "0"]
    assert main([*given, *limits, "--show", "0", "--output", str(tmp_path / "out")]) == 65
    printed = capsys.readouterr()
    line = "check.mojibake: 1 of 46 rows of data.train[0] (2.2 %); the limit is 0.0 %; the first: "
    line += f"{tmp_path}/train.jsonl:48"
    assert line in printed.err.splitlines()
    assert "check.duplicate" not in printed.err
    assert "check.control" not in printed.err
    assert "check.overlap: not checked" in " ".join(printed.out.split())
    assert line in json.loads((tmp_path / "out/check.json").read_text(encoding="utf-8"))["exceeded"]


def test_every_finding_can_be_limited():
    assert {field.name for field in dataclasses.fields(CheckConfig)} == set(KINDS)


def test_rows_are_shown_with_their_learned_tokens(tmp_path):
    rows = [{"question": "مرحبا", "answer": "สวัสดี 👩🏽‍🚀 <b>"}, {"question": sentence(2), "answer": sentence(3, 900)}]
    config = parse(["--config", *words(tmp_path, rows, "qa", "--data.max_length_tokens", "4000")])
    first, second = check(config, 100, 2).rendered
    assert first.pieces[-2] == ["learned", "สวัสดี 👩🏽‍🚀 <b><|im_end|>"]
    assert "مرحبا" in first.pieces[-3][1]
    shown = as_text(second).plain
    assert len(shown) < 1700
    assert "characters are left out" in shown
    assert shown.rstrip().endswith("<|im_end|>⟧")
    assert cut([["read", "ab"], ["learned", "cdef"]], 4) == [
        ["read", "ab"], ["omitted", " [2 characters are left out] "], ["learned", "ef"]
    ]  # fmt: skip


def test_a_template_that_learns_its_header_is_found(tmp_path):
    """Training would learn to write the header, which the prompt at inference already has."""
    template = tmp_path / "header.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}Bot: {{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Bot: {% endif %}",
        encoding="utf-8",
    )
    report = report_of(tmp_path, faulty()[:6], "qa", "--data.chat_template", str(template))
    assert counts(report)["template"] == 6
    assert "trained" in examples(report, "template")[0] or "learning does not begin" in examples(report, "template")[0]


def test_prompts_of_ppo_are_compared_too(tmp_path):
    rows = [{"messages": [{"role": "user", "content": sentence(k)}]} for k in range(30)]
    reward = ["--ppo.reward", "[{kind: length}]"]
    report = report_of(tmp_path, rows, "chat", "--objective", "ppo", *reward, "--data.system_prompt", "Be brief.")
    assert [(proof.rows, proof.wrong, proof.systems) for proof in report.proofs] == [(30, 0, 30)]
    assert {kind for kind, _ in report.rendered[0].pieces} == {"read"}


def test_a_check_needs_no_weights(tmp_path):
    """A folder with a tokenizer alone is enough; of a hub model only its tokenizer is fetched."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    given = words(tmp_path, faulty()[:5], "qa", "--model.path", str(folder), "--model.init", "pretrained")
    assert main([*given, "--show", "0"]) == 0


def test_a_hub_model_is_checked_without_its_weights(tmp_path, monkeypatch):
    asked: list[str] = []

    def fetch(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        return TINY

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    report = report_of(tmp_path, faulty()[:5], "qa", "--model.path", "someone/model", "--model.init", "pretrained")
    assert report.sources[0].rows == 5
    assert "*.json" in asked
    assert not [pattern for pattern in asked if "safetensors" in pattern]
