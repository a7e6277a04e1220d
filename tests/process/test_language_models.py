"""The experiment of examples/language_models.py as a user runs it: the numbers of its page, and what it refuses."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.main import main as evaluate
from examples import language_models
from tests.support.data_tools import write_jsonl
from tests.support.eval_checkpoints import log_probs
from tests.support.training_runs import ROOT
from train.merge.__main__ import main as merge
from train.search.__main__ import main as search
from zerotune.models.recurrent import register

WHO, WHAT, WHERE = ("cat", "dog", "bird", "child"), ("saw", "liked", "found"), ("park", "river", "house", "school")
STORIES = [f"the {a} {v} the {b} near the {c} ." for a in WHO for v in WHAT for b in WHO for c in WHERE]
NEWS = [
    f"{a} reported {n} million of sales in the café {b}" for a in ("alder", "cat") for n in range(6) for b in WHERE[:2]
]
SMALL = {
    "trials": 1, "tokenizer.kind": "word", "tokenizer.vocabulary_size": 20, "model.depth": 1, "run.precision": "fp32",
    "duration.max_steps": 4, "validation.every_steps": 2, "checkpoint.every_steps": 2, "batch.tokens_per_step": 512,
    "batch.tokens_per_micro_batch": 512, "validation.max_new_tokens": 2, "data.workers": 1,
}  # fmt: skip


COMMANDS = {"train.search": search, "train.merge": merge, "eval": evaluate}


def run_here(module: str, *words: str | Path) -> None:
    """A command of the experiment, in this process, which has imported everything; trials are processes."""
    assert COMMANDS[module]([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    for name, rows in (("train", STORIES[::2]), ("valid", STORIES[1::8])):
        write_jsonl(folder / f"{name}.jsonl", [{"text": row} for row in rows])
    (folder / "stories.txt").write_text("\n\n".join(STORIES[3::8]) + "\n", encoding="utf-8")
    (folder / "news.txt").write_bytes("".join(f"{line}@neutral\n" for line in NEWS).encode("iso-8859-1"))
    options = {
        "out": folder / "out", "inside": folder / "stories.txt", "outside": folder / "news.txt",
        "data.train.0.path": folder / "train.jsonl", "data.validation.0.path": folder / "valid.jsonl",
        "data.cache_folder": folder / "cache", **SMALL,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(language_models, "run", run_here)
        patch.setattr(
            sys, "argv", ["x", *(str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1]))]
        )
        assert language_models.main() == 0
    return folder / "out"


def tables(out: Path) -> list[list[list[str]]]:
    """The cells of each table of the page, without that of the evaluation inside it."""
    page = (out / "index.html").read_text(encoding="utf-8").partition("<iframe")[0]
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.S) for table in re.findall(r"<table>(.*?)</table>", page, re.S)]
    return [
        [[html.unescape(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in table]
        for table in rows
    ]


def turned(table: list[list[str]]) -> list[tuple[str, ...]]:
    """Its columns: a model each, so that it fits a page; the first has their names."""
    assert len(table[0]) == 4
    return list(zip(*table, strict=True))


def number(cell: str) -> float:
    return float(cell.split(" ")[0].replace(",", "").removesuffix("%"))


def plain(model: Path, texts: list[str]) -> tuple[float, float, float]:
    """(perplexity, share of <unk>, perplexity without it), a sentence at a time."""
    register()
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    losses = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        losses += zip((-log_probs(network, ids)).tolist(), ids[1:], strict=True)
    known = [loss for loss, token in losses if token != unknown]
    mean = sum(loss for loss, _ in losses) / len(losses)
    return math.exp(mean), 1 - len(known) / len(losses), math.exp(sum(known) / len(known))


def test_sizes_and_budgets(out: Path) -> None:
    head, *rows = turned(tables(out)[0])
    assert list(head[:5]) == ["model", "parameters", "vocabulary", "training tokens", "search"]
    assert [row[0] for row in rows] == ["rnn", "lstm", "transformer"]
    for family, parameters, vocabulary, tokens, trials, *_ in rows:
        weights = load_file(out / family / "merged/model.safetensors")
        assert number(parameters) == sum(tensor.numel() for tensor in weights.values())
        assert (vocabulary, trials.split(",")[0]) == ("14", "1 trial")
        assert number(tokens) > 4 * 256, "each family has the same budget"
    assert len({row[3] for row in rows}) == 1


@pytest.mark.parametrize(("place", "texts"), [(1, STORIES[3::8]), (2, NEWS)], ids=["inside", "outside"])
def test_perplexities_are_those_of_a_plain_loop(out: Path, place: int, texts: list[str]) -> None:
    """Of each row alone; labels are no part of it, and its letters are those of ISO-8859-1."""
    head, *rows = turned(tables(out)[place])
    names = [
        "perplexity",
        f"against {rows[0][0]}",
        "share of <unk>",
        "without <unk>",
        "mean over rows",
        "bits per byte",
    ]
    assert list(head[1:]) == names
    found = {family: plain(out / family / "merged", texts) for family, *_ in rows}
    assert [row[0] for row in rows] == sorted(found, key=lambda family: found[family][0])
    for family, perplexity, against, share, known, *_ in rows:
        assert (number(perplexity), number(share) / 100, number(known)) == pytest.approx(found[family], rel=6e-4)
        low, high = map(float, re.findall(r"\[(.*), (.*)\]", perplexity)[0])
        assert low < number(perplexity) < high
        if against:
            ratio = found[family][0] / found[rows[0][0]][0]
            assert float(re.findall(r"^x([0-9.]+) \[x", against)[0]) == pytest.approx(ratio, rel=5e-3)
    without = " < ".join(sorted(found, key=lambda family: found[family][2]))
    assert f"without <unk>: {without}." in html.unescape((out / "index.html").read_text(encoding="utf-8"))


def test_words_continuations_and_pictures(out: Path) -> None:
    words, continuations = tables(out)[3:]
    assert {"near", "café", "sales"} < {row[0] for row in words[1:]}
    assert "neutral" not in str(words)
    assert [row[0] for row in continuations[1:]] == ["rnn", "lstm", "transformer"]
    assert all(len(row) == 3 and row[1] and row[2] for row in continuations[1:])
    page = (out / "index.html").read_text(encoding="utf-8").partition("<iframe")[0]
    assert "sentence" not in page.lower()  # a row may be a line or a paragraph
    assert re.findall(r'src="([^"]{14})', page) == ["data:image/svg"] * 2 + ["data:image/png"]
    figures = [base64.b64decode(code).decode() for code in re.findall(r'svg\+xml;base64,([^"]+)"', page)]
    assert all(f"<!-- {family} -->" in figure for figure in figures for family in ("rnn", "lstm", "transformer"))
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 3
    assert all((out / link).is_file() for link in links)


def test_a_text_of_ones_own_is_complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--data.train.0.path", "mine.txt", "--inside", "test.txt"])
    with pytest.raises(SystemExit):
        language_models.arguments()
    assert "needs --outside and --data.validation.0.path as well" in capsys.readouterr().err
    sys.argv += ["--outside=news.txt", "--data.validation.0.path=valid.txt"]
    assert language_models.arguments()[1][-1] == "--data.validation.0.path=valid.txt"


def test_texts_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes("One line.\n\n Café \n<|endoftext|>\n".encode("latin-1"))
    for path, words in ((tmp_path / "none.txt", "no such file"), (text, f"iconv -f ISO-8859-1 -t UTF-8 {text}")):
        with pytest.raises(SystemExit, match="64"):
            language_models.rows(path, tmp_path / "rows.jsonl")
        assert words in capsys.readouterr().err
    text.write_text("One line.\n\n Café \n<|endoftext|>\n", encoding="utf-8")
    written = language_models.rows(text, tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == [{"text": "One line."}, {"text": "Café"}]
