"""Classifiers and reward models as components of PPO's reward."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
)

from eval.tasks import reward_model as task
from tests.support import eval_checkpoints
from tests.support.ranks import Solo, together
from tests.support.reward_models import reward_classifier
from train.config_ppo import RewardConfig
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.reward import Reward
from train.objectives.ppo.reward_scorer import RewardScorer
from train.objectives.ppo.trajectories import Trajectory
from train.recipe import parse
from zerotune.common.errors import UserError
from zerotune.data.raw_row import Row
from zerotune.inference.batch_size import Budget
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.requests import Classified

TEXTS = [("the cat", " sat down"), ("the dog", ""), ("ran", " and ran and ran")]


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def trajectories(tokenizer: Any) -> list[Trajectory]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [Trajectory(ids(prompt), (*ids(answer), tokenizer.eos_token_id), True, "r") for prompt, answer in TEXTS]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with another kind of tokenizer (word pieces) than the policy (byte pairs)."""
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


def test_classifier_reads_text_with_its_own_tokenizer(bert: Path, tokenizer: Any) -> None:
    parts = [RewardConfig("model", 2.0, str(bert), "good"), RewardConfig("length", -0.5)]
    found = Reward(parts, tokenizer, None, "fp32", Solo())(trajectories(tokenizer))
    model, own = AutoModelForSequenceClassification.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    with torch.no_grad():
        expected = [float(model(**own(p + a, return_tensors="pt")).logits[0, 1]) for p, a in TEXTS]
    assert len({round(value, 3) for value in expected}) == len(TEXTS)
    assert found.components["model"].tolist() == pytest.approx(expected, abs=1e-5)
    lengths = [len(trajectory.response) for trajectory in trajectories(tokenizer)]
    weighted = [2 * value - 0.5 * length for value, length in zip(expected, lengths, strict=True)]
    assert found.total_r.tolist() == pytest.approx(weighted, abs=1e-5)


@pytest.mark.parametrize(("label", "named"), [("", "none"), ("fine", "fine")])
def test_classifier_with_several_classes_needs_a_label(bert: Path, tokenizer: Any, label: str, named: str) -> None:
    part = RewardConfig("model", path=str(bert), label=label, name="tone")
    with pytest.raises(UserError, match=rf"component tone: label: {named} is not one of its classes: bad, good"):
        Reward([part], tokenizer, None, "fp32", Solo())


def test_unusable_reward_models_are_refused(tmp_path: Path, bert: Path, tiny_qwen2: Path, tokenizer: Any) -> None:
    """A missing folder, a language model, a classifier without the weights of its head."""
    nowhere, language, headless = (tmp_path / name for name in ("nowhere", "language", "headless"))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_qwen2)).save_pretrained(language)
    shutil.copytree(bert, headless)
    weights = load_file(headless / "model.safetensors")
    save_file({k: w for k, w in weights.items() if "classifier" not in k}, headless / "model.safetensors")
    tokenizer.save_pretrained(language)
    for folder, reason in ((nowhere, "no folder"), (language, "classifies texts"), (headless, "weights are missing")):
        part = RewardConfig("model", path=str(folder), label="good", name="tone")
        with pytest.raises(UserError, match=reason) as caught:
            Reward([part], tokenizer, None, "fp32", Solo())
        assert str(caught.value).startswith("ppo.reward, component tone: ")
        assert str(caught.value).count("component tone") == 1


def broken_by_a_dog(folder: Path, tokenizer: Any) -> Path:
    """A classifier whose logits are NaN for texts that end in `the dog`."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_classifier(folder))
    row = tokenizer("the dog", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[row] = torch.nan
    model.save_pretrained(folder)
    return folder


def test_reward_of_empty_texts_is_the_worst(tmp_path: Path, tokenizer: Any) -> None:
    """Texts of special tokens alone are counted as not finite."""
    part = RewardConfig("model", path=str(reward_classifier(tmp_path / "scorer")), label="good")
    reward = Reward([part], tokenizer, None, "fp32", Solo())
    end = tokenizer.eos_token_id
    nothing = Trajectory((end,), (end,), True, "r")
    assert reward([nothing]).total_r.tolist() == [0.0]
    others = trajectories(tokenizer)
    expected = reward(others).total_r.tolist()
    assert reward([others[0], nothing, *others[1:]]).total_r.tolist() == [expected[0], min(expected), *expected[1:]]
    assert reward.not_finite == 2


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_non_finite_rewards_become_the_worst_and_are_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, weight: float
) -> None:
    """Even if all logits are below 0, NaN must not be rewarded more."""
    folder = broken_by_a_dog(tmp_path / "scorer", tokenizer)
    parts = [RewardConfig("model", weight, str(folder), "good"), RewardConfig("length", 0.0)]
    reward = Reward(parts, tokenizer, None, "fp32", Solo())
    with caplog.at_level(logging.WARNING):
        first, second = (reward(trajectories(tokenizer)) for _ in range(2))
    assert first.total_r.tolist() == second.total_r.tolist()
    good, broken, other = first.components["model"].tolist()
    assert good != other
    assert broken == (min if weight > 0 else max)(good, other)
    assert first.total_r[1] == first.total_r.min()
    assert reward.not_finite == 2
    assert len(caplog.records) == 1
    alone = reward(trajectories(tokenizer)[1:2])
    assert alone.components["model"].tolist() == [0.0]  # no other value to replace it by


def test_non_finite_rewards_use_the_worst_of_all_ranks(tmp_path: Path, tokenizer: Any) -> None:
    folder = broken_by_a_dog(tmp_path / "scorer", tokenizer)
    part = RewardConfig("model", 1.0, str(folder), "good")
    made = [Reward([part], tokenizer, None, "fp32", Solo()) for _ in range(3)]

    def rewards(ranks: Any, own: int = 0) -> list[float]:
        found = made[own or ranks.index]
        found.ranks = ranks
        return [*found(trajectories(tokenizer)).total_r.tolist(), found.not_finite]

    assert together(2, rewards) == [rewards(Solo(), 2)] * 2


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ("[]", "is empty; add at least one component"),
        ('[{"kind": "length"}, {"kind": "length"}]', "two components have the name length; give each its own"),
        (
            '[{"kind": "length", "name": "max"}]',
            r"ppo.reward\[0\].name: cannot be max: rollout/reward_max is a metric of the whole reward",
        ),
        ('[{"kind": "model"}]', r"ppo.reward\[0\].path: is missing; give the folder"),
        ('[{"kind": "task"}]', "kind task needs ppo.task"),
        (
            '[{"kind": "length", "path": "scorer"}]',
            r"ppo.reward\[0\].path: applies only to kind model \(the kind is length\)",
        ),
        (
            '[{"kind": "task", "label": "good"}]',
            r"ppo.reward\[0\].label: applies only to kind model \(the kind is task\)",
        ),
        (
            '[{"kind": "unfinished", "metric": "f1"}]',
            r"ppo.reward\[0\].metric: applies only to kind task \(the kind is unfinished\)",
        ),
        ('[{"kind": "length", "weight": .nan}]', r"ppo.reward\[0\].weight: expected a number, got nan"),
        ('[{"kind": "length", "weight": -.inf}]', r"ppo.reward\[0\].weight: expected a number, got -inf"),
    ],
)
def test_invalid_reward_components_are_refused(parts: str, reason: str) -> None:
    words = ["--objective", "ppo", "--model.path", "m", "--data.train", '[{"path": "x", "format": "text"}]']
    with pytest.raises(UserError, match=reason):
        parse([*words, "--ppo.reward", parts])


def shortened(folder: Path, source: Path, size: int) -> Path:
    """The same model with a context of `size` tokens."""
    shutil.copytree(source, folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, max_position_embeddings=size, ignore_mismatched_sizes=True
    )
    model.save_pretrained(folder)
    return folder


def test_classifier_reads_the_end_of_long_texts(
    tmp_path: Path, bert: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer's special tokens at both ends are kept, and one warning is given."""
    folder = shortened(tmp_path / "short", bert, 8)
    reward = Reward([RewardConfig("model", path=str(folder), label="good")], tokenizer, None, "fp32", Solo())
    with caplog.at_level(logging.WARNING):
        first, second = (reward(trajectories(tokenizer)).total_r.tolist() for _ in range(2))
    assert first == second
    assert reward.judged_in_part == 4
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("train.")]
    assert "component model: 2 prompts with their responses exceed its context of 8 tokens; it reads only" in told
    model, own = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(bert)
    ids = own("ran and ran and ran")["input_ids"]
    with torch.no_grad():
        expected = float(model(input_ids=torch.tensor([[ids[0], *ids[-7:]]])).logits[0, 1])
    assert len(ids) > 8
    assert first[2] == pytest.approx(expected, abs=1e-5)


def test_reward_model_reads_the_end_of_long_texts(tmp_path: Path, reward_model: Path, tokenizer: Any) -> None:
    folder = shortened(tmp_path / "short", reward_model, 4)
    score = RewardScorer(RewardConfig("model", path=str(folder)), "key", tokenizer, "fp32", torch.device("cpu"))
    long = trajectories(tokenizer)[2]
    ids = [*long.prompt, *long.response]
    assert len(ids) > 4
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = float(model(input_ids=torch.tensor([ids[-4:]])).logits[0, 0])
    assert score([long]) == [pytest.approx(expected, abs=1e-5)]
    assert ids[-1] == tokenizer.eos_token_id
    assert score.truncated == 1


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path) -> Path:
    """One output that depends on every token."""
    folder = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_qwen2, num_labels=1, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_qwen2).save_pretrained(folder)
    return folder


def test_label_for_a_model_with_one_output_is_refused(reward_model: Path, tokenizer: Any) -> None:
    part = RewardConfig("model", path=str(reward_model), label="positive", name="tone")
    with pytest.raises(
        UserError, match=r"^ppo\.reward, component tone: label: positive is not a class: the model has one output"
    ):
        Reward([part], tokenizer, None, "fp32", Solo())
    Reward([replace(part, label="LABEL_0")], tokenizer, None, "fp32", Solo())  # what its config calls the output


def evaluated(folder: Path, row: dict[str, Any]) -> list[float]:
    """The outputs for both sides of a pair, as the evaluation task finds them."""
    checkpoint = open_checkpoint(str(folder), "model")
    device = torch.device("cpu")
    asked = task.ask(task.load(Row("f", 1, row)), checkpoint.prompter("tokenizer", 1, 0))
    with torch.no_grad():
        answers = checkpoint.load("sequence", "fp32", "none", device).answers(asked, Budget(400, 400, 400))
        return [answer.logits[0] for _, answer in sorted(answers) if isinstance(answer, Classified)]


def answered(tokenizer: Any, prompt: str, answer: str, *messages: dict[str, str]) -> Trajectory:
    ids, said = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, answer))
    return Trajectory(ids, (*said, tokenizer.eos_token_id), True, "r", messages)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!"])
def test_reward_scorer_equals_the_evaluation_task(
    tmp_path: Path, reward_model: Path, tokenizer: Any, template: str | None
) -> None:
    """Texts with their end, conversations through its own chat template, whatever the policy's is."""
    folder = shutil.copytree(reward_model, tmp_path / "own")
    if template:
        own = AutoTokenizer.from_pretrained(folder)
        own.chat_template = template
        own.save_pretrained(folder)
    score = RewardScorer(RewardConfig("model", path=str(folder)), "key", tokenizer, "fp32", torch.device("cpu"))
    sides = {"chosen": " sat down", "rejected": " ran"}
    texts = [answered(tokenizer, "the cat", answer) for answer in sides.values()]
    assert score(texts) == pytest.approx(evaluated(folder, {"prompt": "the cat", **sides}), abs=1e-5)

    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat?"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    chats = [answered(tokenizer, prompt, answer, *asked) for answer in sides.values()]
    said = {name: [{"role": "assistant", "content": answer}] for name, answer in sides.items()}
    found = score(chats)
    assert found == pytest.approx(evaluated(folder, {"prompt": asked, **said}), abs=1e-5)
    assert found != pytest.approx(score([replace(chat, messages=()) for chat in chats]), abs=1e-3)


def test_reward_model_without_template_reads_plain_text(tmp_path: Path, reward_model: Path, tokenizer: Any) -> None:
    folder = shutil.copytree(reward_model, tmp_path / "own")
    (folder / "chat_template.jinja").unlink()
    score = RewardScorer(RewardConfig("model", path=str(folder)), "key", tokenizer, "fp32", torch.device("cpu"))
    chat = answered(tokenizer, "the cat", " sat", {"role": "user", "content": "the cat"})
    assert not score.reads_messages
    assert score([chat]) == score([replace(chat, messages=())])


def test_conversation_rejected_by_the_template_is_reported_early(
    tmp_path: Path, reward_model: Path, tokenizer: Any
) -> None:
    folder = shutil.copytree(reward_model, tmp_path / "own")
    own = AutoTokenizer.from_pretrained(folder)
    own.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    own.save_pretrained(folder)
    reward = Reward([RewardConfig("model", path=str(folder), name="good")], tokenizer, None, "fp32", Solo())
    system, user = ({"role": role, "content": "Be brief."} for role in ("system", "user"))
    reward.require([Prompt((1,), "rows:1", messages=(user,)), Prompt((1,), "rows:2")])
    with pytest.raises(UserError, match=r"^rows:3: ppo\.reward, component good: its chat template rejects .*no system"):
        reward.require([Prompt((1,), "rows:3", messages=(system, user))])


def test_regression_model_reads_texts_like_its_task(tmp_path: Path, reward_model: Path, tokenizer: Any) -> None:
    folder = shutil.copytree(reward_model, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    score = RewardScorer(RewardConfig("model", path=str(folder)), "key", tokenizer, "fp32", torch.device("cpu"))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = float(model(**tokenizer("the cat sat", return_tensors="pt")).logits[0, 0])
    assert score([answered(tokenizer, "the cat", " sat")]) == [pytest.approx(expected, abs=1e-5)]


def test_reward_digest_changes_with_the_weights(tmp_path: Path, bert: Path, tokenizer: Any) -> None:
    def digests(folder: Path) -> Mapping[str, str]:
        part = RewardConfig("model", path=str(folder), label="good", name="tone")
        return Reward([part], tokenizer, None, "fp32", Solo()).digests

    other = shutil.copytree(bert, tmp_path / "other")
    assert sorted(digests(bert)) == ["config.json of the reward tone", "reward tone"]
    assert digests(other) == digests(bert)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    model.classifier.bias.data += 1
    model.save_pretrained(other)
    assert digests(other) != digests(bert)


def test_model_without_a_sequence_head_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    eval_checkpoints.save(tmp_path / "writer")
    part = RewardConfig("model", path=str(tmp_path / "writer"), name="tone")
    with pytest.raises(UserError, match=r"ppo\.reward, component tone"):
        Reward([part], tokenizer, None, "fp32", Solo())
