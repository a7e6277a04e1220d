"""Every evaluation recipe, run to its report: tiny checkpoints and made-up rows, and everything else as it stands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.config import Config, parse
from eval.main import main
from eval.metrics import intervals
from tests.support import eval_checkpoints, eval_vision
from tests.support.evaluations import ROOT
from zerotune.inference.requests import Head

RECIPES = sorted((ROOT / "recipes" / "eval").glob("*.yaml"))
TAGS = ["O", "B-protein", "I-protein", "B-DNA", "I-DNA"]
SMALL = ["--max_rows", "4", "--max_new_tokens", "3"]
MOST_MODELS = 5  # of one recipe


@pytest.fixture(scope="module", autouse=True)
def at_the_root() -> Iterator[None]:
    """Recipes name the small data by paths from the project's root. Intervals are rough: no test here looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(intervals, "MOST_DRAWS", 0)
        yield


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD-0 (not trained here) to HEAD-4 (with the record of a training run), and an encoder."""
    root = tmp_path_factory.mktemp("stand-ins")
    for k in range(MOST_MODELS):
        eval_checkpoints.save(root / f"language-{k}", k, context_tokens=8192)
        eval_checkpoints.save_tagger(root / f"tokens-{k}", k, TAGS)
        record = {
            "parameters": {"trained": 16_384, "total": 1_315_592_192},
            "total_steps": 4,
            "merge": {"step": k},
            "config": {"run": {"folder": "runs/made-up"}, "duration": {"max_epochs": 4}},
        }
        if k:
            for head in ("language", "tokens"):
                (root / f"{head}-{k}" / "run.json").write_text(json.dumps(record))
    eval_vision.save(root / "vision-0", "qwen2_vl")
    eval_checkpoints.save_encoder(root / "encoder")
    return root


@dataclass(frozen=True)
class Data:
    """What stands for files that a user brings."""

    test: Path
    training: Path | None = None


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def tagged(folder: Path) -> Data:
    rows = ["IL-2\tB-DNA\ngene\tI-DNA\nexpression\tO\n", "NF-kappa\tB-protein\nB\tI-protein\nbinds\tO\n"]
    return Data(lines(folder / "test.iob2", *rows), lines(folder / "train.iob2", rows[0]))


def cmmlu(folder: Path) -> Data:
    for split, count in (("dev", 5), ("test", 3)):
        rows = [f"{k},试题{split}{k},甲,乙,丙,丁,{'ABCD'[k % 4]}" for k in range(count)]
        lines(folder / split / "agronomy.csv", ",Question,A,B,C,D,Answer", *rows)
    return Data(folder)


def gsm8k(folder: Path) -> Data:
    rows = [
        {"question": f"What is {k} + 1?", "answer": f"{k}+1=<<{k}+1={k + 1}>>{k + 1}\n#### {k + 1}"} for k in range(7)
    ]
    lines(folder / "train.jsonl", *rows[:5])
    lines(folder / "test.jsonl", *rows[5:])
    return Data(folder)


def corpora(folder: Path) -> Data:
    lines(folder / "finance.jsonl", *({"text": f"Shares rose by {k} percent on Friday ."} for k in range(2)))
    lines(folder / "climate.jsonl", *({"text": f"The sea is {k} degrees warmer than before ."} for k in range(2)))
    return Data(folder)


def pairs(folder: Path) -> Data:
    labels = ("equivalent", "not equivalent")
    rows = [{"sentence1": f"He left {k} .", "sentence2": "He went .", "label": labels[k % 2]} for k in range(4)]
    return Data(lines(folder / "test.jsonl", *rows), lines(folder / "train.jsonl", {"text": "Something else ."}))


def published(folder: Path) -> Data:
    rows = [f"Sales of company {k} {word} again this year .@{word}" for k in range(10) for word in ("rose", "fell")]
    return Data(lines(folder / "Sentences_66Agree.txt", *rows[::2], *rows[1:6:2]), lines(folder / "all.txt", *rows))


def clean(folder: Path) -> Data:
    """What the example's script makes of the published layout."""
    from examples.phrasebank_clean_split import main as split

    assert split([str(published(folder).training), "--out", str(folder)]) == 0
    return Data(folder / "clean_test.jsonl", folder / "clean_train.jsonl")


def pictures(folder: Path) -> Data:
    folder.mkdir()
    return Data(eval_vision.questions(folder))


BROUGHT: Mapping[str, Callable[[Path], Data]] = {  # by recipe; the others use the project's own small data
    "bionlp-ner": tagged,
    "cmmlu": cmmlu,
    "domains": corpora,
    "gsm8k": gsm8k,
    "gsm8k-math": gsm8k,
    "mrpc": pairs,
    "phrasebank": published,
    "phrasebank-clean": clean,
    "scienceqa": pictures,
}


def words_for(recipe: Path, config: Config, stand_ins: Path, folder: Path) -> list[str]:
    """The command: the recipe, and instead of what is not here its stand-ins."""
    head: Head = config.chosen_tasks[0].head
    models = [str(stand_ins / f"{head}-{k}") for k in range(len(config.folders))]
    words = ["--config", str(recipe), "--out", str(folder / "out"), *SMALL]
    if config.baseline:
        words += ["--baseline", models.pop(0)]
    words += [word for model in models for word in ("--model", model)]
    if config.encoder:
        words += ["--encoder", str(stand_ins / "encoder")]
    if recipe.stem in BROUGHT:
        data = BROUGHT[recipe.stem](folder / "data")
        words += [word for name in config.task_names if name != "samples" for word in ("--data", f"{name}={data.test}")]
        words += ["--training_data", str(data.training)] if config.training_data else []
    return words


def result_of(recipe: Path, stand_ins: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    config = parse(["--config", str(recipe)])
    code = main(words_for(recipe, config, stand_ins, folder))
    assert code == 0, capsys.readouterr().err
    assert (folder / "out" / "report.html").stat().st_size > 10_000
    found: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert [task["name"] for task in found["tasks"]] == config.task_names
    assert len(found["models"]) == len(config.folders)
    for option in ("quantization", "sample_seed"):
        assert found["settings"][option] == getattr(config, option)
    return found


def test_there_is_something_to_run() -> None:
    assert len(RECIPES) == 13
    assert set(BROUGHT) <= {recipe.stem for recipe in RECIPES}
    assert max(len(parse(["--config", str(recipe)]).folders) for recipe in RECIPES) <= MOST_MODELS


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_to_a_report_with_finite_numbers(
    recipe: Path, stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result_of(recipe, stand_ins, tmp_path, capsys)
    for task in found["tasks"]:
        assert task["samples"] > 0
        assert task["metrics"] or task["name"] == "samples"
        for metric in task["metrics"]:
            values = [estimate["value"] for estimate in metric["estimates"]]
            assert len(values) == len(found["models"])
            assert all(value is not None and math.isfinite(value) for value in values), metric["name"]
    WHAT_IT_IS_FOR.get(recipe.stem, lambda found: None)(found)


def metric(found: dict[str, Any], task: str, name: str) -> dict[str, Any]:
    (own,) = [one for one in found["tasks"] if one["name"] == task]
    (value,) = [one for one in own["metrics"] if one["name"] == name]
    assert isinstance(value, dict)
    return value


def shows_subsets(found: dict[str, Any]) -> None:
    for name in ("exact_match", "partial_match"):
        groups = metric(found, "qa", name)["groups"]
        assert [(group["group"], group["name"]) for group in groups] == [("subset", "factual"), ("subset", "reasoning")]


def shows_meaning(found: dict[str, Any]) -> None:
    shows_subsets(found)
    assert len(metric(found, "qa", "semantic_match")["groups"]) == 2


def shows_the_grid(found: dict[str, Any]) -> None:
    """Three checkpoints, each against none, and how they were trained."""
    assert len(metric(found, "perplexity", "sentence_perplexity")["differences"]) == 3
    shows_epochs(found)


def shows_epochs(found: dict[str, Any]) -> None:
    assert found["models"][0]["origin"] is None
    origins = [model["origin"] for model in found["models"][1:]]
    assert [origin["epochs"] for origin in origins] == list(range(1, len(origins) + 1))
    assert {(origin["trained"], origin["total"]) for origin in origins} == {(16_384, 1_315_592_192)}


def shows_contamination(found: dict[str, Any]) -> None:
    shows_epochs(found)
    for task in found["tasks"]:
        assert (len(task["contamination"]["found"]), task["contamination"]["clean"]) == (4, 0)


def shows_no_contamination(found: dict[str, Any]) -> None:
    shows_epochs(found)
    for task in found["tasks"]:
        assert sum(task["contamination"]["training"].values()) > 0
        assert not task["contamination"]["found"]


def shows_both_domains(found: dict[str, Any]) -> None:
    assert len(metric(found, "perplexity", "perplexity")["groups"]) == 2


WHAT_IT_IS_FOR: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "bionlp-ner": shows_epochs,
    "chinese-qa": shows_subsets,
    "chinese-qa-meaning": shows_meaning,
    "domains": shows_both_domains,
    "mrpc": shows_epochs,
    "phrasebank": shows_contamination,
    "phrasebank-clean": shows_no_contamination,
    "tinystories-grid": shows_the_grid,
}
