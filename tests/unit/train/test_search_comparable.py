"""Searches whose trials read different tokens say that their losses are not comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.search.__main__ import main
from train.search.comparable import different_tokens
from train.search.space import read_space

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("parameter", "metric", "named"),
    [
        ("tokenizer.vocabulary_size: [300, 400]", "loss", "tokenizer.vocabulary_size"),
        ("pair:\n    - {name: a, model.path: x}\n    - {name: b, model.path: y}", "perplexity", "model.path"),
        ("optim.learning_rate: [1e-4, 1e-3]", "loss", ""),
        ("tokenizer.vocabulary_size: [300, 400]", "accuracy", ""),
    ],
)
def test_losses_over_different_tokens(tmp_path: Path, parameter: str, metric: str, named: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"method: grid\nparameters:\n  {parameter}\n", encoding="utf-8")
    said = different_tokens(read_space(path).parameters, metric)
    assert named in said if named else not said


def test_a_dry_run_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "space.yaml"
    path.write_text("method: grid\nparameters:\n  tokenizer.vocabulary_size: [300, 400]\n", encoding="utf-8")
    words = ["recipes/language-model.yaml", "--space", str(path), "--study", str(tmp_path / "study"), "--dry_run"]
    assert main(words) == 0
    output = capsys.readouterr()
    assert "loss is not comparable" in output.out + output.err
