"""`zerotune.inference.classifiers`: classes of tokens and of sequences equal the model's own for each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from tests.support import eval_checkpoints
from tests.support.eval_families import SIZES, VOCABULARY, budget, tokens
from zerotune.common.errors import UserError
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.classifiers import SequenceClassifier, TokenClassifier
from zerotune.inference.requests import Classified, Classify, Tag, Tagged

DRAW = torch.Generator().manual_seed(0)
ROWS = [tokens(size, DRAW) for size in (5, 1, 17, 8, 30, 2, 17)]
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "initializer_range": 0.3, "num_labels": 5,
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, "num_labels": 3}


def seeded(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_tags_equal_the_models_own(family: str, size: int) -> None:
    model = (
        seeded(BertForTokenClassification, BertConfig(**BERT))
        if family == "bert"
        else seeded(LlamaForTokenClassification, LlamaConfig(**SIZES, num_labels=5))
    )
    classifier = TokenClassifier(model)
    found = dict(classifier.answers([Tag(row) for row in ROWS], budget(size)))
    assert classifier.tokens == sum(map(len, ROWS))
    assert sorted(found) == list(range(len(ROWS)))
    for k, row in enumerate(ROWS):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row])).logits[0].argmax(-1)
        assert found[k] == Tagged(tuple(own.tolist()))
    assert len({c for one in found.values() for c in one.classes}) > 1  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
@pytest.mark.parametrize("family", ["bert", "llama", "llama without a pad token", "gpt2 without a pad token"])
def test_classes_equal_the_models_own(family: str, size: int) -> None:
    config: Any
    if family == "bert":
        kind, config = BertForSequenceClassification, BertConfig(**BERT)
    elif family.startswith("llama"):
        kind, config = LlamaForSequenceClassification, LlamaConfig(**SIZES, num_labels=3)
        config.pad_token_id = 0 if family == "llama" else None
    else:
        kind, config = GPT2ForSequenceClassification, GPT2Config(**GPT2)
    model = seeded(kind, config)
    rows = [*ROWS, (5, 6, 0), (0,)]  # ending with what may be the pad token
    classifier = SequenceClassifier(model)
    found = dict(classifier.answers([Classify(row) for row in rows], budget(size)))
    assert classifier.tokens == sum(map(len, rows))
    for k, row in enumerate(rows):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row])).logits[0]
        answer = found[k]
        assert isinstance(answer, Classified)
        assert answer.logits == pytest.approx(own.tolist(), abs=1e-5)


def test_checkpoints_load_with_their_heads(tmp_path: Path) -> None:
    words = eval_checkpoints.tokenizer()
    for name, kind in [("tokens", BertForTokenClassification), ("sequence", BertForSequenceClassification)]:
        seeded(kind, BertConfig(**{**BERT, "vocab_size": len(words)})).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    device = torch.device("cpu")
    tagger = open_checkpoint(str(tmp_path / "tokens"), "m").load("tokens", "fp32", "none", device)
    assert isinstance(dict(tagger.answers([Tag((5, 6))], budget(100)))[0], Tagged)
    judge = open_checkpoint(str(tmp_path / "sequence"), "m").load("sequence", "fp32", "none", device)
    assert isinstance(dict(judge.answers([Classify((5, 6))], budget(100)))[0], Classified)
    seeded(BertModel, BertConfig(**{**BERT, "vocab_size": len(words)})).save_pretrained(tmp_path / "sequence")
    with pytest.raises(UserError, match="weights are missing, for example classifier"):
        open_checkpoint(str(tmp_path / "sequence"), "m").load("sequence", "fp32", "none", device)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_classes_that_are_not_finite_are_refused(value: float) -> None:
    heads = {
        TokenClassifier: (BertForTokenClassification, Tag),
        SequenceClassifier: (BertForSequenceClassification, Classify),
    }
    for head, (kind, request) in heads.items():
        model = seeded(kind, BertConfig(**BERT))
        torch.nn.init.constant_(model.classifier.bias, value)
        with pytest.raises(UserError, match="not finite"):
            list(head(model).answers([request(ROWS[0])], budget(100)))
