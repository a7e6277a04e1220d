"""`zerotune.inference.answer_cache`: what comes back, what does not, and evaluations that go on where they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.cached_model import open_answer_cache
from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from tests.support import eval_checkpoints
from zerotune.common.errors import CannotWriteError, UserError
from zerotune.inference.answer_cache import AnswerCache, model_key, read_answers
from zerotune.inference.checkpoint import Checkpoint
from zerotune.inference.requests import (
    Answer,
    Classified,
    Classify,
    Generate,
    Generated,
    Request,
    Score,
    Scored,
    Tag,
    Tagged,
)

ALONE = Ranks(0, 1, torch.device("cpu"))
PAIRS: list[tuple[Request, Answer]] = [
    (Score((1, 2), (3,), 4), Scored(-0.1 - 0.2, 1, 4, True)),
    (Generate((1, 2), 5, (0,), ("\n",), 0.7, 3), Generated("一\u2028two\n\\", 2, False)),
    (Tag((1, 2)), Tagged((7, 8))),
    (Classify((1, 2)), Classified((0.25, -1e-7))),
]


def written(folder: Path, model: str = "m") -> Path:
    journal = AnswerCache(folder)
    for request, answer in PAIRS:
        journal.write(model, request, answer)
    (path,) = folder.iterdir()
    return path


def test_answers_come_back_exactly(tmp_path: Path) -> None:
    written(tmp_path)
    found = AnswerCache(tmp_path, 0, read_answers(tmp_path))
    assert found.lookup("m", [request for request, _ in PAIRS]) == dict(PAIRS)
    assert found.lookup("another model", [request for request, _ in PAIRS]) == {}


@given(st.integers(0, 3000))
def test_a_line_that_is_not_whole_is_passed_over(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    path = written(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    lines = whole[:size].count(b"\n") + (whole[:size].endswith(b"}}"))
    known = AnswerCache(None, 0, read_answers(folder)).lookup("m", [request for request, _ in PAIRS])
    assert known == dict(PAIRS[:lines])


@pytest.mark.parametrize(
    "line", ["null", "[]", '{"key": "k"}', '{"key": "k", "kind": "Scored", "answer": {"x": 1}}', "\x00"]
)
def test_lines_of_another_shape_are_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    assert read_answers(tmp_path) == {}


def test_every_setting_of_a_request_counts() -> None:
    base = Generate((1, 2), 5, (0,), ("a",), 0.7, 3)
    others: list[Request] = [
        dataclasses.replace(base, prefix_ids=(1, 2, 3)),
        dataclasses.replace(base, max_new_tokens=6),
        dataclasses.replace(base, stop_ids=(0, 1)),
        dataclasses.replace(base, stop_texts=()),
        dataclasses.replace(base, temperature=0.0),
        dataclasses.replace(base, seed=4),
        Score((1, 2), (5,)),
        Score((1, 2, 5), (5,)),
        Score((1, 2), (5,), 3),
        Tag((1, 2)),
        Classify((1, 2)),
    ]
    journal = AnswerCache()
    for k, request in enumerate([base, *others]):
        journal.add("m", {request: Generated(str(k))})
    known = journal.lookup("m", [base, *others])
    assert [known[request] for request in [base, *others]] == [Generated(str(k)) for k in range(len(others) + 1)]


def test_the_bytes_of_images_count(tmp_path: Path) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for image, content in zip(images, [b"one", b"two", b"one"], strict=True):
        image.write_bytes(content)
    journal = AnswerCache()
    first, second, copy = (Score((1,), (2,), images=(str(image),)) for image in images)
    journal.add("m", {first: Scored(-1.0, 1)})
    assert list(journal.lookup("m", [first, second, copy])) == [first, copy]


def test_models_differ_by_any_digest_or_setting() -> None:
    digests = {"weights": "a", "tokenizer": "b"}
    base = model_key(digests, ["language", "bf16", "none"])
    assert base == model_key(dict(reversed(digests.items())), ["language", "bf16", "none"])
    assert base != model_key(digests | {"weights": "c"}, ["language", "bf16", "none"])
    assert base != model_key(digests, ["language", "bf16", "nf4"])


def test_a_journal_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file in its way")
    with pytest.raises(CannotWriteError, match="cannot be written"):
        AnswerCache(tmp_path / "journal").write("m", *PAIRS[0])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rows = [{"question": f"What is {k}?", "answer": "Paris" * (1 + k % 2)} for k in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    eval_checkpoints.save(tmp_path / "model")
    model, data, out = (str(tmp_path / name) for name in ("model", "rows.jsonl", "out"))
    options = "--tasks perplexity,qa --precision fp32 --max_new_tokens 5".split()
    return ["--model", model, "--data", data, "--out", out, *options]


def values(words: list[str]) -> Any:
    config = parse(words)
    found = evaluate(config, ALONE, open_answer_cache(config, ALONE))
    return found.samples


def refused(*arguments: Any) -> Any:
    raise AssertionError("weights are loaded")


def test_a_second_run_answers_from_the_journal_without_weights(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = values(words)
    capsys.readouterr()
    monkeypatch.setattr(Checkpoint, "load", refused)
    assert values(words) == first
    assert "model: perplexity: 6 of 6 answers from the journal" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        values([*words, "--resume", "never"])


def test_another_temperature_is_asked_anew_and_nothing_else(words: list[str]) -> None:
    def run(*temperatures: str) -> Any:
        config = parse([*words, "--tasks", "samples", "--temperatures", *temperatures])
        return evaluate(config, ALONE, open_answer_cache(config, ALONE))

    first = run("0", "0.7").samples["samples"]["model"]
    found = run("0.7", "1.2", "0")
    assert found.result.tasks[0].reused == {"model": 2 * len(first)}
    assert found.result.tasks[0].tables["model"][0].head == ("prompt", "temperature 0.7", "temperature 1.2", "greedy")
    for before, after in zip(first, found.samples["samples"]["model"], strict=True):
        assert before.shown.items() <= after.shown.items()


@pytest.mark.parametrize("change", ["weights", "config.json", "tokenizer_config.json", "precision"])
def test_a_changed_model_is_asked_anew(
    words: list[str], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values(words)
    if change == "weights":
        eval_checkpoints.save(tmp_path / "model", seed=1)
    elif change == "precision":
        words = [*words, "--precision", "bf16"]
    else:
        path = tmp_path / "model" / change
        path.write_text(json.dumps({**json.loads(path.read_text()), "changed": True}))
    monkeypatch.setattr(Checkpoint, "load", refused)
    with pytest.raises(AssertionError, match="weights are loaded"):
        values(words)


def test_part_of_the_answers_is_enough_to_go_on(words: list[str], tmp_path: Path) -> None:
    first = values(words)
    (path,) = (tmp_path / "out" / "journal").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])
    assert values(words) == first
    new = [p for p in (tmp_path / "out" / "journal").iterdir() if p != path]
    assert [len(p.read_text().splitlines()) for p in new] == [len(lines) - 4]


def test_an_unreadable_journal_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match="--resume never"):
        read_answers(tmp_path)
