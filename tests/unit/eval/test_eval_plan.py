"""`python -m eval --plan`: memory of an evaluation, from config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.main import main

TINY = "examples/models/tiny-qwen2"  # without weights
ROWS = "examples/data/qa.jsonl"
WORDS = ["--plan", "--model", TINY, "--tasks", "qa", "--data", ROWS]


def test_weights_and_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "bfloat16" in text
    assert "It fits" in text
    assert "65,536 positions in a forward pass" in text


def test_precision_and_quantisation_change_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for more in ([], ["--precision", "fp32"], ["--quantization", "nf4"]):
        assert main([*WORDS, *more, "--gpu-memory=1GB"]) == 0
        sizes.append(capsys.readouterr().out)
    assert len(set(sizes)) == 3


def test_too_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--gpu-memory", "0.5GB"]) == 0
    assert "It does NOT fit" in capsys.readouterr().out
    assert main([*WORDS, "--gpu-memory", "0.801GB"]) == 0
    assert "longer ones run out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS, "--gpu-memory", "much"], "--gpu-memory much: must be a size"),
        (["--plan", "--model", "nowhere", "--tasks", "qa", "--data", ROWS], "nowhere: there is no such folder"),
        (["--plan", "--model", "examples/data", "--tasks", "qa", "--data", ROWS], "no config.json"),
        (["--plan", "--tasks", "qa"], "nothing to evaluate"),
    ],
)
def test_bad_words_give_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 64
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_nothing_is_written(tmp_path: Path) -> None:
    assert main([*WORDS, "--out", str(tmp_path / "report")]) == 0
    assert not list(tmp_path.iterdir())
