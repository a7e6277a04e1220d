"""PPO's formulas against slow implementations of the papers; its probabilities against full logits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, OPTConfig, Qwen2Config, Qwen2ForCausalLM

from tests.support.ranks import Whole
from train.config import DurationConfig
from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape, collate
from train.objectives.ppo import advantages
from train.objectives.ppo.logprobs import disable_dropout
from train.objectives.ppo.loss import clip_share, losses
from train.objectives.ppo.phases import Phases
from train.objectives.ppo.prompts import Prompt, fitting_prompts, rollout_prompts, row_prompts
from train.objectives.ppo.trajectories import Trajectories, Trajectory, repetition
from train.recipe import parse
from zerotune.common.errors import UserError
from zerotune.inference.requests import Generate
from zerotune.inference.sampling import sample as draw
from zerotune.models import attention, loss_head
from zerotune.models.token_statistics import Statistics, add_value_head, token_statistics

LENGTHS = [3, 1, 5]
STARTS = np.array([0, 3, 4, 9])


def numbers(seed: int, count: int = 9) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_sums_discounted_td_errors(gamma: float, lam: float) -> None:
    """Equation 16 of arXiv:1506.02438, summed out."""
    rewards, values = numbers(0), numbers(1)
    found = advantages.gae(rewards, values, STARTS, gamma, lam)
    for start, end in pairwise(STARTS.tolist()):
        for t in range(start, end):
            expected = 0.0
            for later in range(t, end):
                following = values[later + 1] if later + 1 < end else 0.0
                delta = rewards[later] + gamma * following - values[later]
                expected += (gamma * lam) ** (later - t) * delta
            assert found[t] == pytest.approx(expected, abs=1e-12)


def test_token_rewards_penalty_each_token_reward_last() -> None:
    found = advantages.token_rewards(np.array([1.0, 2.0, 3.0]), np.full(9, 0.5), STARTS)
    assert found.tolist() == [-0.5, -0.5, 0.5, 1.5, -0.5, -0.5, -0.5, -0.5, 2.5]


def test_rloo_and_grpo_compare_responses_of_a_prompt() -> None:
    returns = np.array([1.0, 3.0, 5.0, 0.0, 0.0, 6.0])
    expected = [1 - 4, 3 - 3, 5 - 2, 0 - 3, 0 - 3, 6 - 0]
    assert advantages.rloo(returns, 3).tolist() == expected
    groups = returns.reshape(2, 3)
    expected_grpo = [(x - g.mean()) / (g.std() + 1e-4) for g in groups for x in g]
    assert advantages.grpo(returns, 3).tolist() == pytest.approx(expected_grpo)
    assert advantages.grpo(np.ones(4), 2).tolist() == [0.0] * 4


def test_kl_estimators_are_unbiased_and_k3_nonnegative() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, reference = (Categorical(logits=row) for row in logits)
    exact = float(torch.distributions.kl_divergence(policy, reference))
    drawn = policy.sample((200_000,))
    log_p, log_q = (model.log_prob(drawn).numpy() for model in (policy, reference))
    for estimator in ("k1", "k3"):
        values = advantages.token_kl(log_p, log_q, estimator)
        assert values.mean() == pytest.approx(exact, abs=5 * values.std() / math.sqrt(len(values)))
    assert (advantages.token_kl(log_p, log_q, "k3") >= 0).all()


def test_kl_coefficient_adapts_to_target() -> None:
    far, near = np.linspace(10.0, 14.0, 1000), np.full(1000, 5.7)
    config = PpoConfig(kl_target=6.0)
    assert advantages.adapt_kl_coefficient(0.1, far, config) == pytest.approx(0.1 * 1.02)  # error clipped to 0.2
    assert advantages.adapt_kl_coefficient(0.1, near, config) == pytest.approx(0.1 * (1 - 0.05 * 0.1))
    assert advantages.adapt_kl_coefficient(0.1, near, replace(config, kl_horizon=1000)) == pytest.approx(0.1 * 0.95)
    assert advantages.adapt_kl_coefficient(0.1, far, PpoConfig()) == 0.1


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_equal_rewards_give_zero_advantage_at_any_length(advantage: Any) -> None:
    """Others get the papers' values: `whiten` does not apply to rloo and grpo."""
    rewards, group = np.array([1.0, 1.0, 1.0, 0.0, 2.0, 4.0]), 3
    starts = np.concatenate([[0], np.cumsum([3, 1, 5, 2, 7, 1])])
    config = PpoConfig(advantage=advantage, samples_per_prompt=group)
    found, targets = advantages.compute_advantages(rewards, np.zeros(19), np.zeros(19), starts, config)
    deviation = math.sqrt(8 / 3) + 1e-4
    expected = {"rloo": [-3.0, 0.0, 3.0], "grpo": [-2 / deviation, 0.0, 2 / deviation]}[advantage]
    by_token = [0.0] * 9 + [value for value, times in zip(expected, (2, 7, 1), strict=True) for _ in range(times)]
    assert found.tolist() == pytest.approx(by_token, abs=1e-12)
    assert not targets.any()


def test_whiten_gives_mean_0_deviation_1() -> None:
    found = advantages.whiten(np.array([1.0, 2.0, 6.0]))
    assert found.tolist() == pytest.approx([x / math.sqrt(14 / 3) for x in (-2.0, -1.0, 3.0)])
    assert advantages.whiten(np.full(4, 3.0)).tolist() == [0.0] * 4
    rewards, values, penalty = numbers(0, 3), numbers(1), numbers(2)
    white, _ = advantages.compute_advantages(rewards, penalty, values, STARTS, PpoConfig())
    plain, _ = advantages.compute_advantages(rewards, penalty, values, STARTS, PpoConfig(whiten=False))
    assert white == pytest.approx((plain - plain.mean()) / plain.std())


def then_of(seed: int, count: int = 20) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    names = ("log_p", "reference", "value", "advantage", "target")
    return {name: torch.randn(count, generator=random, dtype=torch.float64) for name in names} | {
        "weight": torch.rand(count, generator=random, dtype=torch.float64)
    }


@pytest.mark.parametrize("value_clip", [0.0, 0.2])
def test_losses_equal_the_papers_formulas(value_clip: float) -> None:
    """Equation 7 of arXiv:1707.06347 and its value loss, token by token."""
    config = PpoConfig(value_clip=value_clip, kl_in="loss", entropy_weight=0.01, value_weight=0.5)
    then = then_of(0)
    random = torch.Generator().manual_seed(1)
    now = Statistics(then["log_p"].float() + 0.3 * torch.randn(20, generator=random), torch.rand(20), torch.randn(20))
    found = losses(now, then, config, kl_weight=0.05)
    expected = dict.fromkeys(("policy", "value", "kl", "entropy"), 0.0)
    for n in range(20):
        weight, advantage = float(then["weight"][n]), float(then["advantage"][n])
        ratio = math.exp(float(now.log_p_n[n]) - float(then["log_p"][n]))
        clipped = min(max(ratio, 0.8), 1.2)
        expected["policy"] -= weight * min(ratio * advantage, clipped * advantage)
        value, old, target = (float(x[n]) for x in (now.value_n, then["value"], then["target"]))
        error = (value - target) ** 2
        if value_clip:
            error = max(error, (old + min(max(value - old, -value_clip), value_clip) - target) ** 2)
        expected["value"] += 0.5 * weight * 0.5 * error
        log_ratio = float(then["reference"][n]) - float(now.log_p_n[n])
        expected["kl"] += 0.05 * weight * (math.exp(log_ratio) - 1 - log_ratio)
        expected["entropy"] -= 0.01 * weight * float(now.entropy_n[n])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_clipped_ratio_has_no_gradient() -> None:
    then = {name: torch.zeros(2) for name in ("log_p", "reference", "value", "target")}
    then |= {"advantage": torch.tensor([1.0, 1.0]), "weight": torch.ones(2)}
    log_p = torch.tensor([0.5, 0.1], requires_grad=True)
    now = Statistics(log_p, torch.zeros(2), torch.zeros(2))
    losses(now, then, PpoConfig(), 0.0)["policy"].backward()
    assert log_p.grad is not None
    assert log_p.grad[0] == 0
    assert log_p.grad[1] == pytest.approx(-math.exp(0.1))
    assert int(clip_share(now, then, 0.2)) == 1


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    attention.register()
    config = Qwen2Config(vocab_size=90, num_key_value_heads=2, initializer_range=0.3, **sizes)
    model = Qwen2ForCausalLM._from_config(config, attn_implementation=attention.NAME)
    loss_head.install(model)
    return model.eval()


def trajectories(count: int = 6) -> Trajectories:
    draw_ids = np.random.default_rng(0)
    made = []
    for k in range(count):
        prompt, answer = (tuple(draw_ids.integers(5, 90, size=size).tolist()) for size in (2 + k, 1 + (3 * k) % 7))
        made.append(Trajectory(prompt, answer, True, f"f:{k}"))
    return Trajectories(made)


@pytest.mark.parametrize("packed", [True, False])
def test_batched_statistics_equal_those_of_single_rows(packed: bool) -> None:
    """Against log_softmax of transformers' own logits, for each trajectory alone."""
    model, rows = tiny(), trajectories()
    add_value_head(model)
    torch.nn.init.normal_(model.value_head.weight)
    shape = Shape(packed, 1000, 1000, 100, True, 0)
    batch = collate(rows, list(range(len(rows))), shape, filler=0)
    found = token_statistics(model, batch.inputs, batch.targets, temperature=0.7)
    places = rows.places(range(len(rows)))
    for index, trajectory in enumerate(rows.trajectories):
        ids = torch.tensor([[*trajectory.prompt, *trajectory.response]])
        whole = model(input_ids=ids, output_hidden_states=True)
        at = slice(len(trajectory.prompt) - 1, -1)
        log_p = (whole.logits[0, at] / 0.7).log_softmax(-1)
        own = slice(int(rows.starts[index]), int(rows.starts[index + 1]))
        answer = torch.tensor(trajectory.response)[:, None]
        where = [list(places).index(n) for n in range(own.start, own.stop)]
        assert torch.allclose(found.log_p_n[where], log_p.gather(1, answer)[:, 0], atol=1e-5)
        assert torch.allclose(found.entropy_n[where], Categorical(logits=log_p).entropy(), atol=1e-5)
        value = whole.hidden_states[-1][0, at] @ model.value_head.weight
        assert torch.allclose(found.value_n[where], value, atol=1e-5)


def test_statistics_gradients_equal_those_of_full_logits() -> None:
    model, rows = tiny(), trajectories()
    batch = collate(rows, list(range(len(rows))), Shape(True, 1000, 1000, 100, True, 0), filler=0)
    found = token_statistics(model, batch.inputs, batch.targets)
    (found.log_p_n.square().sum() + found.entropy_n.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros(())
    for trajectory in rows.trajectories:
        ids = torch.tensor([[*trajectory.prompt, *trajectory.response]])
        log_p = model(input_ids=ids).logits[0, len(trajectory.prompt) - 1 : -1].log_softmax(-1)
        total = total + log_p.gather(1, torch.tensor(trajectory.response)[:, None]).square().sum()
        total = total + Categorical(logits=log_p).entropy().sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-4), name


@pytest.mark.parametrize("chunk", [1, 1000])
def test_frozen_output_layer_computes_logits_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same gradients of the hidden states; the entropy has none."""
    monkeypatch.setattr("zerotune.models.token_statistics.chunk_rows", lambda vocabulary, device: chunk)
    model, rows = tiny(), trajectories()
    batch = collate(rows, list(range(len(rows))), Shape(True, 1000, 1000, 100, True, 0), filler=0)
    made = {"logits": 0}
    plain = loss_head.LossHead.logits

    def counted(self: loss_head.LossHead, hidden_nd: torch.Tensor) -> torch.Tensor:
        made["logits"] += len(hidden_nd)
        return plain(self, hidden_nd)

    monkeypatch.setattr(loss_head.LossHead, "logits", counted)
    found, gradients = {}, {}
    for frozen in (True, False):
        loss_head.output_layer(model).requires_grad_(not frozen)
        made["logits"] = 0
        found[frozen] = token_statistics(model, batch.inputs, batch.targets, temperature=0.7, learn_entropy=False)
        (found[frozen].log_p_n.square().sum() + found[frozen].entropy_n.sum()).backward()
        answers = len(found[frozen].log_p_n)
        assert made["logits"] == (answers if frozen else 2 * answers)
        gradients[frozen] = {n: p.grad.clone() for n, p in model.model.named_parameters() if "embed" not in n}
        model.zero_grad()
    assert torch.allclose(found[True].log_p_n, found[False].log_p_n, atol=1e-6)
    assert torch.allclose(found[True].entropy_n, found[False].entropy_n, atol=1e-5)
    for name, gradient in gradients[False].items():
        assert gradient.abs().max() > 0
        assert (gradients[True][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


class Reads:
    """A tokenizer for responses without stop texts."""

    def decode(self, ids: Any, **options: Any) -> str:
        return " ".join(map(str, ids))


def test_greedy_responses_are_scorings_most_probable_tokens(tmp_path: Any) -> None:
    from train.objectives.ppo.rollout import generation_requests, sample_responses

    model = tiny()
    prompts = [tuple(range(5, 7 + k)) for k in range(16)]
    config = PpoConfig(response_tokens=6)
    asked = generation_requests([Prompt(ids, "r") for ids in prompts], config, (), (0, 1), greedy=True)
    together = sample_responses(model, Reads(), asked, [Prompt(ids, "r") for ids in prompts], Whole())
    for prompt, trajectory in zip(prompts, together, strict=True):
        one = [Prompt(prompt, "r")]
        requests = generation_requests(one, config, (), (0, 1), greedy=True)
        (alone,) = sample_responses(model, Reads(), requests, one, Whole())
        assert alone.response == trajectory.response
        logits = model(input_ids=torch.tensor([[*prompt, *trajectory.response]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(trajectory.response)
    assert model.config._attn_implementation == attention.NAME


def test_seeds_depend_on_prompt_and_response_index() -> None:
    from train.objectives.ppo.rollout import generation_requests

    prompts, config = [Prompt((5, 6), "r")] * 2, PpoConfig(samples_per_prompt=2)
    first, again = (generation_requests(prompts, config, (3,), (0, 7), greedy=False) for _ in range(2))
    assert len({request.seed for request in first}) == 4
    assert [request.seed for request in first] == [request.seed for request in again]


@pytest.mark.parametrize(
    ("top_k", "top_p", "possible"), [(2, 1.0, {0, 1}), (0, 0.6, {0, 1}), (0, 0.4, {0}), (0, 1.0, {0, 1, 2, 3})]
)
def test_top_k_and_top_p_restrict_sampling(top_k: int, top_p: float, possible: set[int]) -> None:
    from zerotune.inference.sampling import GenerationState

    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    rows = [GenerationState(k, Generate((k,), 1, (), (), 1.0, k, (), top_k, top_p), None) for k in range(400)]
    assert set(draw(rows, logits.repeat(400, 1))) == possible


@given(st.lists(st.integers(0, 3), max_size=30))
@settings(max_examples=50)
def test_repetition_is_the_share_of_repeated_ngrams(answer: list[int]) -> None:
    groups = [tuple(answer[k : k + 3]) for k in range(len(answer) - 2)]
    before = sum(group in groups[:k] for k, group in enumerate(groups))
    assert repetition(answer) == pytest.approx(before / len(groups) if groups else 0.0)


def test_prompts_without_room_for_a_response_are_skipped() -> None:
    short, long = Prompt((1, 2, 3), "f:1"), Prompt(tuple(range(9)), "f:2")
    found, told = fitting_prompts(iter([short, None, long]), "rows", response_tokens=4, context=12)
    assert found == [short]
    assert told == ["2 rows of rows are skipped: no prompt, or prompt + ppo.response_tokens exceeds the context"]
    assert fitting_prompts(iter([short]), "rows", 4, 7) == ([short], [])  # exactly enough
    with pytest.raises(UserError, match=r"rows: no row has a prompt with room for a response: 1 prompts \+ ppo\."):
        fitting_prompts(iter([long, None]), "rows", 4, 12)


OF_A_ROLLOUT = {"ppo.rollout_prompts": "4", "ppo.samples_per_prompt": "2"}
IMPOSSIBLE = {
    "more steps than answers": (
        {**OF_A_ROLLOUT, "ppo.minibatches": "9"}, r"ppo\.minibatches: 9 steps are more than the 8 responses",
    ),
    "a target that nothing follows": ({"ppo.kl_target": "6", "ppo.kl_weight": "0"}, r"ppo\.kl_target: .* 0 stays 0"),
    "a weight that could turn": (
        {**OF_A_ROLLOUT, "ppo.kl_target": "6", "ppo.kl_horizon": "7"}, r"ppo\.kl_horizon: 7 is less than the 8 resp",
    ),
    "a weight that draws no prompt more often": (
        {"data.train": '[{"path": "x", "format": "text"}, {"path": "y", "format": "text", "weight": 2}]'},
        r"data\.train\[1\]\.weight: .* once per epoch",
    ),
}  # fmt: skip
LEAST = [
    "--objective", "ppo", "--model.path", "m", "--data.train", '[{"path": "x", "format": "text"}]',
    "--ppo.reward", '[{"kind": "length"}]',
]  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_rollout_settings_are_refused(name: str) -> None:
    options, reason = IMPOSSIBLE[name]
    with pytest.raises(UserError, match=reason):
        parse([*LEAST, *(word for key, value in options.items() for word in (f"--{key}", value))])


@pytest.mark.parametrize("key", ["rollout_prompts", "samples_per_prompt"])
def test_empty_rollout_is_reported_once(key: str) -> None:
    with pytest.raises(UserError, match=rf"ppo\.{key}: must be greater than 0, not 0") as told:
        parse([*LEAST, f"--ppo.{key}", "0"])
    assert "at most 0" not in str(told.value)


def test_minibatches_may_equal_the_responses() -> None:
    words = "--ppo.rollout_prompts 4 --ppo.minibatches 4 --ppo.kl_target 6 --ppo.kl_horizon 4"
    config = parse([*LEAST, *words.split()])
    assert config.settings.minibatches == config.settings.kl_horizon == 4


@pytest.mark.parametrize("words", ["--ppo.supervised_weight 0.5", "--ppo.supervised_every 2 --ppo.supervised_steps 1"])
def test_source_weights_are_allowed_with_supervised_steps(words: str) -> None:
    config = parse([*LEAST, "--data.train", '[{"path": "x", "format": "text", "weight": 2}]', *words.split()])
    assert config.data.train[0].weight == 2


def test_each_epoch_uses_every_prompt_in_new_order() -> None:
    prompts = [Prompt((k,), f"f:{k}") for k in range(10)]
    epochs = [[rollout_prompts(prompts, 3 * e + k, 3, 4, seed=1) for k in range(3)] for e in range(2)]
    for rollouts in epochs:
        assert [len(rollout) for rollout in rollouts] == [4, 4, 4]
        drawn = [prompt for rollout in rollouts for prompt in rollout]
        assert set(drawn[:10]) == set(prompts)
        assert drawn[10:] == drawn[:2]  # the last one is filled up
    assert epochs[0] != epochs[1]


def test_phases_are_consecutive_and_checkpoints_lie_between() -> None:
    config = PpoConfig(rollout_prompts=4, epochs=2, minibatches=2, supervised_every=2, supervised_steps=3)
    phases = Phases(config, DurationConfig(max_epochs=2), prompts=10)  # 3 rollouts an epoch
    shown = " ".join(f"{phase.kind[0]}{phase.start}-{phase.end}" for phase in phases.all)
    assert shown == "r0-4 r4-8 s8-11 r11-15 r15-19 s19-22 r22-26 r26-30 s30-33"
    assert [step for step in range(34) if phases.is_between(step)] == [0, 4, 8, 11, 15, 19, 22, 26, 30, 33]
    assert sorted(phases.rollout_starts) == [0, 4, 11, 15, 22, 26]
    assert phases.plan(prompt_tokens=5.0, prompts=10, held_out=0).epoch_ends == (15, 33)
    assert [p.start for p in phases.from_step(11)] == [11, 15, 19, 22, 26, 30]
    with pytest.raises(UserError, match=r"duration\.max_steps: 3 is less than one rollout's 4 steps"):
        Phases(config, DurationConfig(max_epochs=None, max_steps=3), prompts=10)


def test_continued_text_gives_one_prompt() -> None:
    """Parts of one text have the same `file:line`. Whole texts on one line (a JSON array) are separate prompts."""

    class Rows:
        pieces = (("a:1", 6), ("a:1", 6), ("a:1", 3), ("b:1", 5), ("b:1", 5), ("c:1", 2))
        sources_n = np.zeros(len(pieces), np.int16)

        def __len__(self) -> int:
            return len(self.pieces)

        def tokens(self, index: int) -> Any:
            ids = np.arange(self.pieces[index][1], dtype=np.int32) + 10 * index
            return ids, np.where(np.arange(len(ids)) > 0, ids, -100)

        def row_id(self, index: int) -> str:
            return self.pieces[index][0]

    rows: Any = Rows()
    found = list(row_prompts(rows, [0], corpus_tokens=2, row_tokens=6))
    assert found == [Prompt((0, 1), "a:1"), Prompt((30, 31), "b:1"), Prompt((40, 41), "b:1"), None]


SMALL = {"vocab_size": 90, "hidden_size": 32, "initializer_range": 0.3}
DROPPING: dict[str, Any] = {
    "opt": lambda: OPTConfig(
        **{**SMALL, "init_std": 0.3}, ffn_dim=48, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=4,
        dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
    ),
    "bloom": lambda: BloomConfig(**SMALL, n_layer=2, n_head=4, hidden_dropout=0.5, attention_dropout=0.5),
    "gpt2": lambda: GPT2Config(
        vocab_size=90, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", DROPPING)
def test_disable_dropout_in_every_model_family(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(DROPPING[family]())
    loss_head.install(model)
    rows = trajectories()
    batch = collate(rows, list(range(len(rows))), Shape(False, 1000, 1000, 100, True, 0), filler=0)

    def log_p(training: bool) -> torch.Tensor:
        model.train(training)
        return token_statistics(model, batch.inputs, batch.targets).log_p_n.detach()

    assert not torch.allclose(log_p(True), log_p(False), atol=1e-3)  # the case must occur
    disable_dropout(model)
    assert torch.equal(log_p(True), log_p(False))
    rates = {name: value for name, value in vars(model.config).items() if "dropout" in name and value}
    assert not rates  # some families read theirs there
