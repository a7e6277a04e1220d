"""Meaning by a sentence encoder: against mean pooling written out, and as a number of `qa`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from eval.config import parse
from eval.distributed import Ranks
from eval.encoder import Encoder, add_semantic_scores, with_semantic_scores
from eval.evaluation import evaluate
from eval.report.notes import circumstances
from eval.tasks import TASKS
from tests.support import eval_checkpoints
from tests.support.eval_checkpoints import ENCODER_CONTEXT, ENCODER_WORDS
from zerotune.common.errors import UserError
from zerotune.data.raw_row import Row
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.requests import Generated

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_checkpoints.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder), CPU)


def pooled(folder: Path, *windows: str) -> torch.Tensor:
    """Mean over the tokens of all windows, the plain way."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    hidden = []
    for window in windows:
        ids = [2, *(ENCODER_WORDS.index(word) for word in window.split()), 3]
        with torch.no_grad():
            hidden.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0])
    return torch.cat(hidden).mean(0)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_similarity_is_the_cosine_of_mean_pooled_tokens(folder: Path, encoder: Encoder) -> None:
    expected = cosine(pooled(folder, "paris is the city"), pooled(folder, "a big cat"))
    assert abs(expected) < 0.99
    assert encoder.similarity("paris is the city", "a big cat") == pytest.approx(expected, abs=1e-6)
    assert encoder.similarity("a big cat", "paris is the city") == encoder.similarity("paris is the city", "a big cat")
    assert encoder.similarity("北京", "北京") == pytest.approx(1.0)


def test_a_long_text_is_read_in_windows_and_not_cut(folder: Path, encoder: Encoder) -> None:
    room = ENCODER_CONTEXT - 2 - 2  # two positions kept free, and the special tokens
    words = ["paris", "the", "city", "of", "a", "big", "cat", "lyon", "is"] * 2
    parts = [" ".join(words[k : k + room]) for k in range(0, len(words), room)]
    assert len(parts) == 3
    expected = cosine(pooled(folder, *parts), pooled(folder, "lyon"))
    assert encoder.similarity(" ".join(words), "lyon") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("one", "other"), [("", "paris"), ("paris", " \n"), ("", "")])
def test_a_blank_answer_means_nothing(encoder: Encoder, one: str, other: str) -> None:
    assert encoder.similarity(one, other) == 0.0


def test_only_this_evaluation_scores_by_meaning() -> None:
    """Training calls the task's own score, which knows no encoder."""
    plain = TASKS["qa"]
    item = plain.load(Row("rows.jsonl", 1, {"question": "Capital of France?", "answer": "Paris"}))
    task = with_semantic_scores(
        plain, lambda answer, reference: 0.71 if (answer, reference) == ("the city", "Paris") else 0.7
    )
    own = plain.score(item, [Generated("the city")]).values
    found = task.score(item, [Generated("the city")]).values
    assert found == {**own, "semantic_match": 1.0, "semantic_similarity": 0.71}
    assert task.score(item, [Generated("Lyon")]).values["semantic_match"] == 0.0  # 0.7 itself is not above
    assert "semantic_match" not in own


def test_dialogues_are_scored_by_meaning_too() -> None:
    plain = TASKS["dialogue"]
    rows = [("user", "A city?"), ("assistant", "paris"), ("user", "Another?"), ("assistant", "lyon")]
    item = plain.load(Row("rows.jsonl", 1, {"messages": [{"role": role, "content": text} for role, text in rows]}))
    alike = {("paris", "paris"): 1.0, ("a cat", "lyon"): 0.1, ("a cat", "paris"): 0.2, ("lyon", "paris"): 0.8}
    task = with_semantic_scores(plain, lambda one, other: alike[one, other])
    values = task.score(item, [Generated("paris"), Generated("a cat")]).values
    assert values["semantic_turn_similarity"] == pytest.approx(0.55)
    assert values["semantic_consistency"] == pytest.approx(0.4)
    assert {"semantic_turn_similarity", "semantic_consistency"} <= {metric.name for metric in task.metrics}
    assert "semantic_consistency" not in plain.score(item, [Generated("paris")]).values


def test_an_encoder_for_no_task_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--encoder .*qa"):
        add_semantic_scores([TASKS["perplexity"]], str(folder), CPU)
    assert add_semantic_scores([TASKS["perplexity"]], None, CPU) == [TASKS["perplexity"]]


def test_a_language_model_is_no_sentence_encoder(tmp_path: Path) -> None:
    eval_checkpoints.save(tmp_path)
    with pytest.raises(UserError, match="is a causal language model"):
        Encoder(str(tmp_path), CPU)


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layer\.1\.output"):
        Encoder(str(broken), CPU)


def test_an_evaluation_with_an_encoder(folder: Path, tmp_path: Path) -> None:
    model = eval_checkpoints.save(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"Q{k}?", "answer": "Paris"}) + "\n" for k in range(3)))
    words = ["--model", model, "--tasks", "qa,samples", "--data", rows, "--encoder", folder, "--max_new_tokens", "4"]
    found = evaluate(parse(list(map(str, words))), Ranks(0, 1, CPU))
    qa, samples = found.result.tasks
    assert {"exact_match", "semantic_match", "semantic_similarity"} <= {metric.name for metric in qa.metrics}
    assert not samples.metrics
    encoder = found.result.encoder
    assert encoder is not None
    assert encoder.digests == open_checkpoint(str(folder), "x").digests()
    assert any(
        f"encoder: {folder}, fp32, weights {encoder.digests['weights'][:12]}" in o for o in circumstances(found.result)
    )
    assert json.loads(found.result.to_json())["encoder"]["digests"] == encoder.digests
    expected = Encoder(str(folder), CPU)
    for sample in found.samples["qa"]["model"]:
        own = expected.similarity(sample.shown["answer"], "Paris")
        assert sample.values["semantic_similarity"] == pytest.approx(own, abs=1e-6)
