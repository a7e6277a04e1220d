"""Reward models as parts of PPO's reward: any classifier's logit, read with its own tokenizer."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertTokenizer

from tests.ranks import Solo
from tests.reward_models import judge
from train.config_ppo import RewardConfig
from train.errors import UserError
from train.objectives.ppo.episodes import Episode
from train.objectives.ppo.reward import Reward
from train.recipe import parse

TEXTS = [("the cat", " sat down"), ("the dog", ""), ("ran", " and ran and ran")]


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def episodes(tokenizer: Any) -> list[Episode]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [Episode(ids(prompt), (*ids(answer), tokenizer.eos_token_id), True, "r") for prompt, answer in TEXTS]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with word pieces, of which the policy's byte pairs know nothing."""
    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes, **names)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def test_a_classifier_of_another_family_reads_the_text_with_its_own_tokenizer(bert: Path, tokenizer: Any) -> None:
    parts = [RewardConfig("model", 2.0, str(bert), "good"), RewardConfig("length", -0.5)]
    found = Reward(parts, tokenizer, None, "fp32", Solo())(episodes(tokenizer))
    model, own = AutoModelForSequenceClassification.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    with torch.no_grad():
        expected = [float(model(**own(p + a, return_tensors="pt")).logits[0, 1]) for p, a in TEXTS]
    assert len({round(value, 3) for value in expected}) == len(TEXTS)
    assert found.parts["model"].tolist() == pytest.approx(expected, abs=1e-5)
    lengths = [len(episode.answer) for episode in episodes(tokenizer)]
    weighted = [2 * value - 0.5 * length for value, length in zip(expected, lengths, strict=True)]
    assert found.total_e.tolist() == pytest.approx(weighted, abs=1e-5)


@pytest.mark.parametrize(("label", "named"), [("", "none"), ("fine", "fine")])
def test_of_several_outputs_one_must_be_chosen(bert: Path, tokenizer: Any, label: str, named: str) -> None:
    part = RewardConfig("model", path=str(bert), label=label, name="tone")
    with pytest.raises(UserError, match=rf"part tone: label: {named} is not one of its classes: bad, good"):
        Reward([part], tokenizer, None, "fp32", Solo())


def test_what_is_no_number_counts_as_nothing_and_is_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = judge(tmp_path / "judge")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    row = tokenizer("the dog", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[row] = torch.nan
    model.save_pretrained(folder)
    reward = Reward([RewardConfig("model", path=str(folder))], tokenizer, None, "fp32", Solo())
    with caplog.at_level(logging.WARNING):
        first, second = (reward(episodes(tokenizer)).total_e for _ in range(2))
    assert first.tolist() == second.tolist()
    assert [value == 0 for value in first] == [False, True, False]
    assert reward.not_finite == 2
    assert len(caplog.records) == 1  # told once


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ("[]", "names no part"),
        ('[{"kind": "length"}, {"kind": "length"}]', "two parts are called length; give each a name"),
        ('[{"kind": "length", "name": "max"}]', "a part cannot be called max, since rollout/reward_max is the whole's"),
        ('[{"kind": "model"}]', r"ppo.reward\[0\].path: names no classifier"),
        ('[{"kind": "task"}]', "kind task scores answers to ppo.task, which names none"),
    ],
)
def test_parts_that_cannot_be_meant_are_refused(parts: str, reason: str) -> None:
    words = ["--objective", "ppo", "--model.path", "m", "--data.train", '[{"path": "x", "format": "text"}]']
    with pytest.raises(UserError, match=reason):
        parse([*words, "--ppo.reward", parts])


def test_the_beginning_of_what_is_too_long_for_a_judge_is_judged_and_told_once(
    tmp_path: Path, bert: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        bert, max_position_embeddings=8, ignore_mismatched_sizes=True
    )
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    reward = Reward([RewardConfig("model", path=str(tmp_path), label="good")], tokenizer, None, "fp32", Solo())
    with caplog.at_level(logging.WARNING, "train.objectives.ppo.judge"):
        first, second = (reward(episodes(tokenizer)).total_e.tolist() for _ in range(2))
    assert first == second
    (told,) = caplog.messages
    assert "part model: 2 prompts with their answers are longer than the 8 tokens that it reads" in told


def test_a_judge_with_other_weights_has_another_digest(tmp_path: Path, bert: Path, tokenizer: Any) -> None:
    def digests(folder: Path) -> Mapping[str, str]:
        part = RewardConfig("model", path=str(folder), label="good", name="tone")
        return Reward([part], tokenizer, None, "fp32", Solo()).digests

    other = shutil.copytree(bert, tmp_path / "other")
    assert list(digests(bert)) == ["reward tone"]
    assert digests(other) == digests(bert)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    model.classifier.bias.data += 1
    model.save_pretrained(other)
    assert digests(other) != digests(bert)
