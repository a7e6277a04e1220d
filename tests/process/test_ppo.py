"""PPO as a run: one result however it is spread, resumed to the last bit, and a task that it can solve, solved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.faults.runs import Zygote, finished, status
from tests.process.runs import TINY, arguments, metrics, pretrained_stand_in
from tests.process.test_equalities import TOLERANCE
from tests.process.test_heads import weights

SPREAD = {"batch__tokens_per_micro_batch": 128}


class Place:
    """Runs over a few prompts, rewarded for words of one kind."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        text = "the cat sat on the mat and the dog ran in the park with a red ball"
        words = text.split()
        rows = [{"text": " ".join(words[k:] + words[:k])} for k in range(len(words))]
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.judge = self._judge()
        self.stand_in = pretrained_stand_in(folder / "stand-in")

    def _judge(self) -> Path:
        """A reward that depends on the last token alone: a model whose layers add nothing to the embedding."""
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        folder = self.folder / "judge"
        config = AutoConfig.from_pretrained(TINY, num_labels=1, pad_token_id=0)
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.zeros_(parameter)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
        return folder

    def words(self, name: str, **options: object) -> list[str]:
        chosen: dict[str, object] = {
            "objective": "ppo",
            "data__train": json.dumps([{"path": str(self.rows), "format": "text"}]),
            "data__validation_fraction": 0.25,
            "ppo__reward": json.dumps([{"kind": "model", "path": str(self.judge)}]),
            "ppo__prompt_tokens": 4,
            "ppo__response_tokens": 6,
            "ppo__rollout_prompts": 8,
            "ppo__epochs": 2,
            "ppo__minibatches": 2,
            "optim__learning_rate": 1e-3,
            "optim__epsilon": 1e-4,
            "optim__schedule": "constant",
            "duration__max_epochs": 3,
            **options,
        }
        return arguments(self.folder / name, self.rows, **chosen)

    def run(self, name: str, kind: str = "single", **options: object) -> Path:
        processes = self.zygote.run(self.words(name, **options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        return self.folder / name


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("ppo"), zygote)


WATCHED = (
    "train/policy",
    "train/gradient_norm",
    "rollout/reward",
    "rollout/kl",
    "rollout/entropy",
    "validation/reward",
)


def assert_equal(one: Path, other: Path) -> None:
    for name in WATCHED:
        expected = metrics(one, name)
        assert len(expected) >= 3, name
        assert metrics(other, name) == pytest.approx(expected, rel=TOLERANCE, abs=2e-6), name
    found = weights(other)
    for name, tensor in weights(one).items():
        assert (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-3) <= TOLERANCE, name


SPREADS = [(tuning, kind) for tuning in ("full", "lora") for kind in ("single", "ddp", "zero2", "zero3")]


@pytest.mark.parametrize(("tuning", "kind"), [*SPREADS, ("prompt", "ddp"), ("prompt", "zero3")])
def test_one_result_however_it_is_spread(place: Place, kind: str, tuning: str) -> None:
    reference = place.folder / tuning
    if not reference.exists():
        place.run(tuning, tuning__kind=tuning)
    assert_equal(reference, place.run(f"{tuning}-{kind}", kind, tuning__kind=tuning, **SPREAD))


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_value_model_and_supervised_steps_too(place: Place, kind: str) -> None:
    """In supervised steps nothing is valued, yet ranks stay together. The merged folder is the policy's alone."""
    options: dict[str, object] = {"ppo__value_model": place.stand_in, "ppo__supervised_weight": 0.5}
    options |= {"ppo__supervised_every": 2, "ppo__supervised_steps": 2}
    reference = place.folder / "valued"
    if not reference.exists():
        place.run("valued", merge__at_end="true", **options)
        assert any("value_head.body" in name for name in weights(reference))
        with safe_open(reference / "merged" / "model.safetensors", "pt") as file:
            assert not any("value_head" in name for name in file.keys())  # noqa: SIM118  (not a dict)
    assert_equal(reference, place.run(f"valued-{kind}", kind, **options, **SPREAD))


RESUMED: dict[str, dict[str, object]] = {
    "gae": {},
    "grpo": {"ppo__advantage": "grpo", "ppo__samples_per_prompt": 2},
    "rloo": {"ppo__advantage": "rloo", "ppo__samples_per_prompt": 2},
    "4 bit and a value model": {"tuning__quantization": "nf4", "model__init": "pretrained"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_killed_and_resumed_to_the_last_bit(place: Place, name: str) -> None:
    """The kill falls into a rollout's steps; the checkpoint lies before it."""
    options: dict[str, object] = {"checkpoint__every_steps": 4, "ppo__kl_target": 1.0, "tuning__kind": "lora"}
    options |= RESUMED[name]
    if "4 bit" in name:
        options |= {"model__path": place.stand_in, "ppo__value_model": place.stand_in}
    whole = place.run(f"{name}-whole", **options)
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 7, "do": "SIGKILL"}]
    words = place.words(f"{name}-cut", **options)
    assert place.zygote.run(words, place.folder / f"{name}-killed", orders=orders).codes == [-9]
    assert finished(place.folder / f"{name}-cut") == [4]
    cut = place.run(f"{name}-cut", **options)
    for metric in ("train/policy", "train/value", "rollout/reward", "rollout/kl_weight"):
        assert metrics(cut, metric) == metrics(whole, metric), metric
    assert all(torch.equal(tensor, weights(cut)[key]) for key, tensor in weights(whole).items())
    first, *_, last = metrics(whole, "rollout/kl").values()
    assert abs(first) < 1e-5  # the reference is the model with its adapter off, which has not learned anything yet
    assert abs(last) > 1e-3


def test_a_stop_waits_for_the_end_of_the_rollout(place: Place) -> None:
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 2, "do": "SIGTERM"}]
    words = place.words("stopped")
    processes = place.zygote.run(words, place.folder / "stopped-log", orders=orders)
    assert processes.codes == [0], processes.output
    assert status(place.folder / "stopped")["state"] == "preempted"
    assert finished(place.folder / "stopped") == [4]


def test_a_bandit_is_solved_and_the_distance_holds_back(place: Place) -> None:
    """One token for each prompt, worth what the judge says: more and more of what is worth most, if nothing holds."""
    options: dict[str, object] = {"ppo__response_tokens": 1, "ppo__rollout_prompts": 96, "ppo__epochs": 4}
    options |= {"ppo__minibatches": 1, "optim__learning_rate": 1e-2, "duration__max_epochs": 16}
    free = place.run("free", ppo__kl_weight=0.0, **options)
    held = place.run("held", ppo__kl_weight=1000.0, **options)
    reward, kl = (list(metrics(free, f"rollout/{name}").values()) for name in ("reward", "kl"))
    deviation = next(iter(metrics(free, "rollout/reward_deviation").values()))
    assert reward[-1] > reward[0] + 2 * deviation
    assert kl[-1] > 1.0
    assert max(abs(x) for x in metrics(held, "rollout/kl").values()) < 0.2 * kl[-1]


def test_supervised_steps_between_and_beside(place: Place) -> None:
    options = {"ppo__supervised_weight": 0.5, "ppo__supervised_every": 2, "ppo__supervised_steps": 3}
    run = place.run("mixed", **options)
    learned = metrics(run, "train/supervised")
    assert len(learned) == max(learned)  # in every step
    between = 3 * 3  # steps of three phases: after every second of 6 rollouts
    assert len(metrics(run, "train/policy")) == max(learned) - between


REFUSED = {
    "no reward": ({"ppo__reward": "[]"}, "ppo.reward: names no part"),
    "unknown class": (
        {"ppo__reward": '[{"kind": "model", "path": "JUDGE", "label": "good"}]', "two": True}, "label: good is not one",
    ),
    "no sequence head": ({"ppo__reward": json.dumps([{"kind": "model", "path": str(TINY)}])}, "ppo.reward, part model"),
    "a checkpoint within a rollout": ({"checkpoint__every_steps": 3}, "step 3 lies within a rollout's 4 steps"),
    "long prompts": ({"ppo__prompt_tokens": 500}, "no row has a prompt with room for an answer"),
    "values that nobody learns": (
        {"ppo__advantage": "rloo", "ppo__samples_per_prompt": 2, "ppo__value_model": str(TINY)},
        "ppo.value_model: rloo learns no values",
    ),
    "one answer to compare": ({"ppo__advantage": "grpo"}, "ppo.samples_per_prompt: grpo compares answers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_told_before_the_first_step(place: Place, name: str) -> None:
    options, reason = REFUSED[name]
    given = dict(options)
    if given.pop("two", False):
        from transformers import AutoModelForSequenceClassification

        two = place.folder / "two"
        if not two.exists():
            AutoModelForSequenceClassification.from_pretrained(
                place.judge, num_labels=2, ignore_mismatched_sizes=True
            ).save_pretrained(two)
            for file in place.judge.glob("tokenizer*"):
                (two / file.name).write_bytes(file.read_bytes())
        given = {key: str(value).replace("JUDGE", str(two)) for key, value in given.items()}
    processes = place.zygote.run(place.words(f"refused {name}", **given), place.folder / f"refused {name}")
    assert set(processes.codes) == {64}, processes.output
    assert reason in processes.output
    assert "Traceback" not in processes.output
    assert "step 1/" not in processes.output
