"""Tokenizers with an unknown token: its share is reported; models that read other unknown words are not compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from eval.report import markdown, show
from eval.report.html import page
from eval.report.matrix import matrix
from eval.report.notes import warnings
from eval.result import Evaluation
from tests.support import eval_checkpoints
from tests.unit.eval.test_evaluation import run
from zerotune.common.metric_format import percent

KNOWN = "the cat sat on the mat and the dog sat on the cat".split()
INSIDE = [
    f"the {a} sat on the {b} and {c}" for a in ("cat", "dog") for b in ("mat", "cat") for c in ("the", "a", "sat")
]
OUTSIDE = [
    f"{a} traders sat on {b} {c}"
    for a in ("oil", "the", "cat")
    for b in ("two", "dog")
    for c in "billion the mat of".split()
]
CHINESE = ["今天天气很好", "the 猫 坐在 mat 上", "我们 去 公园"]
TITLE = "Unknown words"


def word_level(words: Sequence[str], unknown: str = "<unk>") -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.WordLevel({word: k for k, word in enumerate(["<eos>", unknown, *words])}, unk_token=unknown)
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def unigram() -> PreTrainedTokenizerFast:
    """As of SentencePiece: letters and a few pieces, without bytes to fall back to."""
    pieces = [
        ("<eos>", 0.0),
        ("<unk>", 0.0),
        *((piece, -3.0) for piece in ["▁the", "▁", *"abcdefghijklmnopqrstuvwxyz"]),
    ]
    core = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>")


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    eval_checkpoints.model(len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, **texts: Sequence[str]) -> list[str]:
    words = []
    for name, lines in texts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
        words += ["--data", str(path)]
    return words


def by_plain_loop(folder: Path, texts: Sequence[str], unknown: int) -> tuple[float, float, float]:
    """(share of unknown tokens, perplexity, perplexity of the others)."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    losses: list[tuple[float, bool]] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        of_row = eval_checkpoints.log_probs(network, ids)
        losses += [(-loss, token == unknown) for loss, token in zip(of_row.tolist(), ids[1:], strict=True)]
    known = [loss for loss, is_unknown in losses if not is_unknown]
    mean = math.fsum(loss for loss, _ in losses) / len(losses)
    return 1 - len(known) / len(losses), math.exp(mean), math.exp(math.fsum(known) / len(known))


def table(found: Evaluation, model: str) -> dict[str, Any]:
    """corpus -> (share, perplexity, perplexity without unknown tokens), as in result.json."""
    (task,) = json.loads(found.result.to_json())["tasks"]
    return {row[0]: row[1:] for one in task["tables"][model] if one["title"].startswith(TITLE) for row in one["rows"]}


@pytest.mark.parametrize(
    ("tokenizer", "unknown"),
    [(word_level(sorted(set(KNOWN))), 1), (word_level(sorted(set(KNOWN)), "[UNK]"), 1), (unigram(), 1)],
    ids=["words", "[UNK]", "unigram"],
)
def test_the_share_is_that_of_a_plain_loop(tokenizer: Any, unknown: int, tmp_path: Path) -> None:
    model, texts = save(tmp_path / "model", tokenizer), {"inside": INSIDE, "outside": OUTSIDE, "chinese": CHINESE}
    found = run("--model", model, "--tasks", "perplexity", *write(tmp_path, **texts), "--window_tokens", 64)
    rows = table(found, "model")
    assert list(rows) == list(texts)
    for name, lines in texts.items():
        assert rows[name] == pytest.approx(by_plain_loop(model, lines, unknown), rel=1e-6), name
    assert rows["chinese"][0] > rows["inside"][0]


def test_every_report_shows_it(tmp_path: Path) -> None:
    model = save(tmp_path / "model", word_level(sorted(set(KNOWN))))
    found = run("--model", model, "--tasks", "perplexity", *write(tmp_path, outside=OUTSIDE))
    share = percent(table(found, "model")["outside"][0])
    console = Console(record=True, width=160)
    show(found.result, console)
    for report in (console.export_text(), markdown(found), page(found)):
        assert report.count(TITLE) == 1
        assert share in report


def test_bytes_know_every_word(tmp_path: Path) -> None:
    model = save(tmp_path / "model", eval_checkpoints.tokenizer())
    found = run("--model", model, "--tasks", "perplexity", *write(tmp_path, outside=OUTSIDE, chinese=CHINESE))
    assert not table(found, "model")
    assert TITLE not in markdown(found) + page(found)


def test_a_corpus_with_unknown_words_has_them_in_bytes_too(tmp_path: Path) -> None:
    """Text that is tokenised already, and a byte-level vocabulary with <unk>, as of a model from scratch."""
    tokenizer = eval_checkpoints.tokenizer()
    tokenizer.add_tokens(["<unk>"])
    model = save(tmp_path / "model", tokenizer)
    texts = [f"the <unk> of {k} <unk>" for k in range(9)]
    found = run("--model", model, "--tasks", "perplexity", *write(tmp_path, treebank=texts))
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert table(found, "model")["treebank"] == pytest.approx(by_plain_loop(model, texts, unknown), rel=1e-6)


def test_only_what_can_be_compared_is_tested(tmp_path: Path) -> None:
    tokenizers = {
        "base": word_level(sorted(set(KNOWN))),
        "same": word_level(sorted(set(KNOWN))),
        "more": word_level(sorted({*KNOWN, "traders", "oil"})),
        "bytes": eval_checkpoints.tokenizer(),
    }
    words = [w for k, (n, t) in enumerate(tokenizers.items()) for w in ("--model", save(tmp_path / n, t, k))]
    found = run(*words, "--tasks", "perplexity", *write(tmp_path, outside=OUTSIDE))
    (task,) = found.result.tasks
    for metric in task.metrics:
        same, *others = metric.differences
        assert same.p_value is not None
        assert [one.verdict for one in others] == ["not tested"] * 2
        assert all((one.won, one.lost, one.p_value, one.p_holm) == (0, 0, None, None) for one in others)
    assert list(table(found, "more")), "a model without unknown words has no table beside it"
    assert not table(found, "bytes")
    assert "read different words as <unk>" in "\n".join(warnings(found.result))
    assert page(found).count("share of &lt;unk&gt;") == 3


def test_bytes_and_words_are_compared_across_tokenizers_but_not_tokens(tmp_path: Path) -> None:
    known = word_level(sorted({word for text in OUTSIDE for word in text.split()}))
    base, other = save(tmp_path / "words", known), save(tmp_path / "bytes", eval_checkpoints.tokenizer())
    found = run("--model", base, "--model", other, "--tasks", "perplexity", *write(tmp_path, outside=OUTSIDE))
    tested = {metric.name: metric.differences[0].p_value is not None for metric in found.result.tasks[0].metrics}
    assert tested == {
        "perplexity": False, "bits_per_byte": True, "perplexity_per_word": True, "sentence_perplexity": False,
    }  # fmt: skip
    assert "compare bits_per_byte or perplexity_per_word" in markdown(found).replace("\\_", "_")
    arrows = [line.cells[1].arrow for line in matrix(found.result)]
    assert [arrow == "·" for arrow in arrows] == [True, False, False, True]
    assert any(found.outcomes["perplexity"]["bytes"]), "the browser of samples goes by bits per byte"
