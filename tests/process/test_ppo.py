"""PPO as a run: the same on any sharding, resumed bit for bit, and able to solve a simple task."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from eval.tasks.lookup import find as find_task
from tests.support.compare import assert_equal, weights
from tests.support.fault_runs import Zygote, finished, status
from tests.support.reward_models import add_nothing, reward_classifier
from tests.support.training_runs import TINY, arguments, metrics, pretrained_stand_in, write_rows
from zerotune.data.raw_row import Row
from zerotune.inference.requests import Generated

SPREAD = {"batch__tokens_per_micro_batch": 128}


def broken(folder: Path) -> Path:
    """A classifier whose logits are all NaN."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_classifier(folder))
    torch.nn.init.constant_(model.score.weight, torch.nan)
    model.save_pretrained(folder)
    return folder


class Place:
    """Runs over a few prompts, rewarded for words of one kind."""

    def __init__(self, folder: Path, zygote: Zygote | None = None) -> None:
        self.folder, self.zygote = folder, zygote
        text = "the cat sat on the mat and the dog ran in the park with a red ball"
        words = text.split()
        rows = [{"text": " ".join(words[k:] + words[:k])} for k in range(len(words))]
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.classifier = reward_classifier(folder / "classifier")
        self.broken = broken(folder / "broken")
        self.stand_in = pretrained_stand_in(folder / "stand-in")

    def words(self, name: str, **options: object) -> list[str]:
        chosen: dict[str, object] = {
            "objective": "ppo",
            "data__train": json.dumps([{"path": str(self.rows), "format": "text"}]),
            "data__validation_fraction": 0.25,
            "ppo__reward": json.dumps([{"kind": "model", "path": str(self.classifier), "label": "good"}]),
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
        assert self.zygote is not None
        processes = self.zygote.run(self.words(name, **options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        return self.folder / name


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("ppo"), zygote)


ROUNDING = 2e-6  # of what lies around 0
WATCHED = (
    "train/policy",
    "train/gradient_norm",
    "rollout/reward",
    "rollout/kl",
    "rollout/entropy",
    "validation/reward",
)


SPREADS = [(tuning, kind) for tuning in ("full", "lora") for kind in ("single", "ddp", "zero2", "zero3")]


@pytest.mark.parametrize(("tuning", "kind"), [*SPREADS, ("prompt", "ddp"), ("prompt", "zero3")])
def test_results_do_not_depend_on_sharding(place: Place, kind: str, tuning: str) -> None:
    reference = place.folder / tuning
    if not reference.exists():
        place.run(tuning, tuning__kind=tuning)
    assert_equal(reference, place.run(f"{tuning}-{kind}", kind, tuning__kind=tuning, **SPREAD), WATCHED, ROUNDING)


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_value_model_and_supervised_steps_on_any_sharding(place: Place, kind: str) -> None:
    """In supervised steps nothing is valued, yet ranks stay together. The merged folder is the policy's alone."""
    options: dict[str, object] = {"ppo__value_model": place.stand_in, "ppo__supervised_weight": 0.5}
    options |= {"ppo__supervised_every": 2, "ppo__supervised_steps": 2}
    reference = place.folder / "valued"
    if not reference.exists():
        place.run("valued", merge__at_end="true", **options)
        assert any("value_head.body" in name for name in weights(reference))
        with safe_open(reference / "merged" / "model.safetensors", "pt") as file:
            assert not any("value_head" in name for name in file.keys())  # noqa: SIM118  (not a dict)
    assert_equal(reference, place.run(f"valued-{kind}", kind, **options, **SPREAD), WATCHED, ROUNDING)


def gpt_neo(folder: Path) -> Path:
    """A family that only transformers' own loop can generate with, and that has no sdpa."""
    from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=2048, hidden_size=32, num_layers=2, num_heads=2, window_size=16, max_position_embeddings=256,
        attention_types=[[["global", "local"], 1]], bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "prompts"), [("ddp", 8), ("zero3", 1)])
def test_plain_generation_loop_on_any_sharding(place: Place, kind: str, prompts: int) -> None:
    """Prompts of several lengths, padded on the left. Of one prompt the second rank has none, and waits for nobody."""
    model, questions = place.folder / "neo", place.folder / "questions"
    questions.mkdir(exist_ok=True)
    options: dict[str, object] = {
        "data__train": json.dumps([{"path": str(write_rows(questions)), "format": "qa"}]),
        "model__path": model if model.exists() else gpt_neo(model),
        "model__init": "pretrained",
        "validation__max_rows": 4,
        "ppo__rollout_prompts": prompts,
        "ppo__minibatches": 1,
        "duration__max_steps": 6,
    }
    reference = place.run(f"neo-{prompts}", **options)
    spread = place.run(f"neo-{prompts}-{kind}", kind, **options, **SPREAD)
    assert_equal(reference, spread, WATCHED, ROUNDING)


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
    options["checkpoint__asynchronous"] = "false"  # written before the kill comes
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


UPDATE, EXPERIENCE = "train.engine.loop:Loop._update", "train.objectives.ppo.objective:PPO._experience"
STOPS = {  # the first rollout has 4 steps
    "in its steps": (UPDATE, 2),
    "in its last step": (UPDATE, 4),
    "while the next is sampled": (EXPERIENCE, 2),
}
ADAPTED: dict[str, object] = {"ppo__kl_in": "loss", "ppo__kl_target": 1.0, "ppo__kl_horizon": 10}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_and_resumed_to_the_last_bit(place: Place, name: str) -> None:
    """The state of a rollout without optimizer steps is discarded, and no extra rollout is sampled."""
    paths = (place.classifier, place.broken)
    parts = [{"kind": "model", "path": str(path), "label": "good", "name": path.name} for path in paths]
    options = ADAPTED | {"tuning__kind": "lora", "ppo__reward": json.dumps(parts)}
    whole = place.folder / "never stopped"
    if not whole.exists():
        place.run(whole.name, **options)
    at, nth = STOPS[name]
    drawn = place.folder / f"drawn {name}"
    orders = [{"at": at, "nth": nth, "do": "SIGTERM"}, {"at": EXPERIENCE, "nth": 2, "do": f"touch {drawn}"}]
    words = place.words(f"stopped {name}", **options)
    processes = place.zygote.run(words, place.folder / f"stopping {name}", orders=orders)
    assert processes.codes == [0], processes.output
    stopped = place.folder / f"stopped {name}"
    assert status(stopped)["state"] == "preempted"
    assert finished(stopped) == [4]
    assert drawn.exists() == (at == EXPERIENCE)
    processes = place.zygote.run(words, place.folder / f"going on {name}")
    assert processes.codes == [0], processes.output
    assert "rewards are not finite" not in processes.output  # told before
    for metric in ("train/policy", "train/kl", "rollout/kl_weight", "rollout/not_finite", "ppo/clip_fraction"):
        assert metrics(stopped, metric) == metrics(whole, metric), metric
    assert all(torch.equal(tensor, weights(stopped)[key]) for key, tensor in weights(whole).items())


def test_stop_request_waits_for_the_rollouts_end(place: Place) -> None:
    orders = [{"at": UPDATE, "nth": 2, "rank": 1, "do": "SIGTERM"}]
    processes = place.zygote.run(place.words("one asked"), place.folder / "one asked", "ddp", orders)
    assert processes.codes == [0, 0], processes.output
    said = status(place.folder / "one asked")
    assert (said["state"], said["step"], said["reason"]) == ("preempted", 4, "another rank was asked to stop")
    assert finished(place.folder / "one asked") == [4]


def test_kl_coefficient_is_constant_within_a_rollout(place: Place) -> None:
    """The one that is written, and the first distance of 0 has made the second a 0.2 * 8 answers / 10 lower."""
    options: dict[str, object] = {"tuning__kind": "lora", "duration__max_steps": 8}
    fixed = place.run("fixed", ppo__kl_in="loss", **options)
    adapted = place.run("adapted", **ADAPTED, **options)
    assert metrics(adapted, "rollout/kl_weight") == pytest.approx({1: 0.05, 5: 0.05 * 0.84})
    expected, found = (metrics(run, "train/kl") for run in (fixed, adapted))
    assert [found[step] for step in range(1, 5)] == [expected[step] for step in range(1, 5)]
    assert found[5] == pytest.approx(0.84 * expected[5])
    assert expected[5] > 0


def test_entropy_bonus_is_a_mean_over_tokens(place: Place) -> None:
    """Before anything has moved it is what the rollout found; and it works."""
    options: dict[str, object] = {"ppo__epochs": 1, "ppo__minibatches": 1, "optim__learning_rate": 1e-2}
    plain, paid = (place.run(f"entropy {weight}", ppo__entropy_weight=weight, **options) for weight in (0, 10))
    entropy = metrics(paid, "rollout/entropy")
    assert metrics(paid, "train/entropy") == pytest.approx({k: -10 * nats for k, nats in entropy.items()}, rel=1e-5)
    assert not metrics(plain, "train/entropy")
    last = max(entropy)
    assert entropy[last] > metrics(plain, "rollout/entropy")[last]


BANDIT: dict[str, object] = {
    "ppo__response_tokens": 1, "ppo__rollout_prompts": 96, "ppo__epochs": 4, "ppo__minibatches": 1,
    "optim__learning_rate": 1e-2, "duration__max_epochs": 16,
}  # fmt: skip


def test_bandit_is_solved_and_kl_restrains(place: Place) -> None:
    """Responses of one token: the policy learns the most rewarded one, unless the KL restrains it."""
    free = place.run("free", ppo__kl_weight=0.0, watch__every_steps=60, **BANDIT)
    assert list(metrics(free, "train/policy")) == [60, 64]
    assert list(metrics(free, "rollout/reward")) == list(range(1, 64, 4))  # of each rollout
    for name in ("clip_fraction", "seconds_updating", "trained_tokens_per_second"):
        assert list(metrics(free, f"ppo/{name}")) == list(range(4, 65, 4))
    held = place.run("held", ppo__kl_weight=1000.0, **BANDIT)
    speed, seconds = (metrics(held, f"ppo/{name}") for name in ("trained_tokens_per_second", "seconds_updating"))
    tokens = {0: 0.0} | metrics(held, "train/tokens")
    assert all(speed[step] * seconds[step] == pytest.approx(tokens[step] - tokens[step - 4]) for step in speed)
    reward, kl = (list(metrics(free, f"rollout/{name}").values()) for name in ("reward", "kl"))
    deviation = next(iter(metrics(free, "rollout/reward_deviation").values()))
    assert reward[-1] > reward[0] + 2 * deviation
    assert kl[-1] > 1.0
    assert max(abs(x) for x in metrics(held, "rollout/kl").values()) < 0.2 * kl[-1]


def test_supervised_steps_within_and_between_rollouts(place: Place) -> None:
    options = {"ppo__supervised_weight": 0.5, "ppo__supervised_every": 2, "ppo__supervised_steps": 3}
    run = place.run("mixed", **options)
    learned = metrics(run, "train/supervised")
    assert len(learned) == max(learned)  # in every step
    between = 3 * 3  # steps of three phases: after every second of 6 rollouts
    assert len(metrics(run, "train/policy")) == max(learned) - between


def sources(place: Place, name: str, form: str, rows: list[dict[str, object]]) -> dict[str, object]:
    """Options for a run over these rows."""
    path = place.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data__train": json.dumps([{"path": str(path), "format": form}]), "duration__max_epochs": 2}


WORDS = ("cat", "dog", "mat", "park", "ball", "red", "the", "sat", "ran", "on", "in", "with")
QUESTION = [{"role": "user", "content": f"Who saw the {word}?"} for word in WORDS]
ANSWER = {"role": "assistant", "content": "Nobody."}


def test_chats_without_answers_train_like_those_with(place: Place) -> None:
    asked = place.run("asked", **sources(place, "asked", "chat", [{"messages": [said]} for said in QUESTION]))
    rows: list[dict[str, object]] = [{"messages": [said, ANSWER]} for said in QUESTION]
    whole = place.run("answered", **sources(place, "answered", "chat", rows))
    assert metrics(asked, "rollout/reward") == metrics(whole, "rollout/reward")
    assert len(metrics(asked, "train/policy")) == 16
    assert all(torch.equal(tensor, weights(asked)[key]) for key, tensor in weights(whole).items())


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_preference_pairs_give_prompts(place: Place, kind: str) -> None:
    def row(said: dict[str, str]) -> dict[str, object]:
        if kind == "text":
            return {"prompt": said["content"], "chosen": " Nobody.", "rejected": " Who?"}
        return {"prompt": [said], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Who?"}]}

    options = sources(place, f"pairs {kind}", "preference", [row(said) for said in QUESTION])
    run = place.run(f"pairs {kind}", validation__samples=3, ppo__supervised_weight=0.5, **options)
    assert len(metrics(run, "train/policy")) == len(metrics(run, "train/supervised")) == 16
    lines = [line for file in (run / "samples").iterdir() for line in file.read_text("utf-8").splitlines()]
    prompts = {json.loads(line)["prompt"] for line in lines}
    questions = {said["content"] for said in QUESTION}
    if kind == "text":
        assert prompts <= questions
    else:
        assert all(any(f"user\n{question}" in prompt for question in questions) for prompt in prompts)
        assert all("Nobody" not in prompt for prompt in prompts)


def test_supervised_steps_use_rows_with_answers(place: Place) -> None:
    rows: list[dict[str, object]] = [{"messages": [said, ANSWER][: 1 + k % 2]} for k, said in enumerate(QUESTION)]
    options = sources(place, "half", "chat", rows) | {"ppo__supervised_weight": 0.5}
    run = place.run("half", **options)
    assert len(metrics(run, "train/supervised")) == len(metrics(run, "train/policy"))
    told = r"\d of 9 training rows have no answer: used as prompts, skipped in supervised steps"
    assert re.search(told, " ".join((place.folder / "half.rank0.log").read_text().split()))


@pytest.mark.parametrize("supervised", [{"weight": 0.5}, {"every": 2, "steps": 1}])
def test_supervised_steps_without_any_answer_are_refused(place: Place, supervised: dict[str, float]) -> None:
    options = sources(place, "none", "chat", [{"messages": [said]} for said in QUESTION])
    options |= {f"ppo__supervised_{key}": value for key, value in supervised.items()}
    processes = place.zygote.run(place.words("no answers", **options), place.folder / "no answers")
    assert set(processes.codes) == {64}, processes.output
    assert f"ppo.supervised_{next(iter(supervised))}: no row of data.train has an answer to learn" in processes.output


TASK = """\
name: letters
kind: generate
prompt: "Say {{ question }}."
reference: answer
extract: "[aeinorst]"
metrics: [rougeL, exact_match]
"""


def test_prompts_and_rewards_of_a_task_on_one_rank_and_two(place: Place) -> None:
    """Answers of random tokens, worth 1 where the last of eight letters in them is the one that the row asks for."""
    rows = [{"question": f"letter {letter}", "answer": letter} for letter in "aeinorst" * 4]
    (place.folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place.folder / "letters.yaml").write_text(TASK)
    options: dict[str, object] = {
        "data__train": json.dumps([{"path": str(place.folder / "letters.jsonl"), "format": "qa"}]),
        "ppo__task": place.folder / "letters.yaml",
        "ppo__reward": json.dumps(
            [
                {"kind": "task", "metric": "exact_match", "name": "letter"},
                {"kind": "task", "weight": 2, "name": "rouge"},
            ]
        ),
    }
    run = place.run("task", validation__samples=3, **options)
    for kind in ("rollout", "validation"):
        reward, letter, rouge = (metrics(run, f"{kind}/reward{name}") for name in ("", "_letter", "_rouge"))
        assert all(0 <= share <= 1 for share in letter.values())
        assert 0 < sum(letter.values()) < len(letter)
        assert reward == pytest.approx({step: letter[step] + 2 * rouge[step] for step in reward})
    assert_equal(run, place.run("task-ddp", "ddp", **SPREAD, **options), WATCHED, ROUNDING)
    task = find_task(str(place.folder / "letters.yaml"))
    samples = [
        json.loads(line) for file in (run / "samples").iterdir() for line in file.read_text("utf-8").splitlines()
    ]
    assert {sample["held_out"] for sample in samples} == {True, False}
    assert len({sample["reward"] for sample in samples}) > 1
    for sample in samples:
        (letter,) = re.findall(r"Say letter (\w)\.", sample["prompt"])
        item = task.load(Row("f", 1, {"question": f"letter {letter}", "answer": letter}))
        values = task.score(item, [Generated(sample["answer"])]).values
        assert sample["reward"] == pytest.approx(values["exact_match"] + 2 * values["rougeL"])


def silent(folder: Path) -> Path:
    """A policy that ends at once, whatever is asked."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY, tie_word_embeddings=False))
    add_nothing(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 10
        model.get_output_embeddings().weight.zero_()[tokenizer.eos_token_id, 0] = 10
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_run_survives_empty_responses_and_nan_rewards(place: Place) -> None:
    parts = [{"kind": "model", "path": str(place.broken), "label": "good"}, {"kind": "length", "weight": 0.5}]
    run = place.run(
        "silent", model__path=silent(place.folder / "silent-model"), model__init="pretrained", validation__samples=2,
        ppo__reward=json.dumps(parts), ppo__minibatches=1,
    )  # fmt: skip
    assert status(run)["state"] == "finished"
    rollouts = len(metrics(run, "rollout/reward"))
    assert set(metrics(run, "rollout/empty").values()) == set(metrics(run, "rollout/response_tokens").values()) == {1.0}
    assert set(metrics(run, "rollout/reward").values()) == set(metrics(run, "validation/reward").values()) == {0.5}
    counted = list(metrics(run, "rollout/not_finite").values())
    assert len(counted) == rollouts > 3
    assert all(later - earlier >= 8 for earlier, later in pairwise(counted))  # every answer of a rollout
    assert "rewards are not finite and are replaced by the worst" in (place.folder / "silent.rank0.log").read_text()
    assert all(math.isfinite(loss) for loss in metrics(run, "train/policy").values())


REFUSED = {
    "no reward": ({"ppo__reward": "[]"}, "ppo.reward: is empty"),
    "no class": ({"ppo__reward": '[{"kind": "model", "path": "CLASSIFIER"}]'}, "label: none is not one of its"),
    "unknown class": (
        {"ppo__reward": '[{"kind": "model", "path": "CLASSIFIER", "label": "fine"}]'}, "label: fine is not one",
    ),
    "no weights": ({"ppo__reward": json.dumps([{"kind": "model", "path": str(TINY)}])}, "ppo.reward[0].path"),
    "a checkpoint within a rollout": ({"checkpoint__every_steps": 3}, "step 3 is within a rollout of 4 steps"),
    "long prompts": ({"ppo__prompt_tokens": 500}, "no row has a prompt with room for a response"),
    "unknown task": ({"ppo__task": "gsm8k_kot"}, "ppo.task: unknown task gsm8k_kot"),
    "no task": ({"ppo__reward": '[{"kind": "task"}]'}, "ppo.reward: kind task needs ppo.task"),
    "values that nobody learns": (
        {"ppo__advantage": "rloo", "ppo__samples_per_prompt": 2, "ppo__value_model": str(TINY)},
        "ppo.value_model: rloo learns no values",
    ),
    "one answer to compare": ({"ppo__advantage": "grpo"}, "ppo.samples_per_prompt: grpo compares the responses"),
    "trained biases": (
        {"tuning__kind": "lora", "tuning__lora__bias": "all"}, "tuning.lora.bias: PPO's reference is the model with its"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_settings_are_refused_before_step_1(place: Place, name: str) -> None:
    options, reason = REFUSED[name]
    given = {key: str(value).replace("CLASSIFIER", str(place.classifier)) for key, value in options.items()}
    processes = place.zygote.run(place.words(f"refused {name}", **given), place.folder / f"refused {name}")
    assert set(processes.codes) == {64}, processes.output
    assert reason in processes.output
    assert "Traceback" not in processes.output
    assert "step 1/" not in processes.output
