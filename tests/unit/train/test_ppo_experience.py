"""The experience and metrics of a rollout, against plain implementations."""

from __future__ import annotations

import json
import logging
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.ranks import Threads, together
from tests.unit.train.test_ppo import trajectories
from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape
from train.objectives.ppo import metrics
from train.objectives.ppo.experience import Experience
from train.objectives.ppo.health import Health
from train.objectives.ppo.loss import losses
from train.objectives.ppo.trajectories import Trajectories
from zerotune.models.token_statistics import Statistics

SMALL = Shape(True, 1000, 12, 100, True, 0)  # a micro-batch holds an answer or two


def scored(rows: Trajectories) -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {name: random.normal(size=int(rows.starts[-1])) for name in ("log_p", "entropy", "value", "reference")}


def by_answer(rows: Trajectories, values_n: Any) -> list[Any]:
    return np.split(values_n, rows.starts[1:-1])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_step_averages_tokens_or_responses_on_any_ranks(level: Any, count: int) -> None:
    rows, part = trajectories(), np.array([4, 0, 3, 2, 5])
    config = PpoConfig(level=level, value_weight=1.0, value_clip=0.0)
    experience = Experience.of(rows, np.arange(6.0), scored(rows), config, kl_weight=0.1)
    policy = value = counted = 0.0
    seen: list[str] = []
    for index in range(count):
        ranks: Any = SimpleNamespace(index=index, count=count)
        for batch in experience.batches(part, SMALL, ranks):
            then = batch.extras
            now = Statistics(then["log_p"], then["entropy"], then["value"])  # unchanged: every ratio is 1
            found = losses(now, then, config, 0.1)
            policy, value = policy + float(found["policy"]), value + float(found["value"])
            counted += batch.counts["policy"]
            seen += batch.row_ids
            assert set(batch.counts.values()) == {batch.counts["policy"]}
    assert sorted(seen) == sorted(rows.row_id(index) for index in part)
    assert counted == pytest.approx(5 if level == "sequence" else rows.learned_n[part].sum())

    def mean(values_n: Any) -> float:
        chosen = [by_answer(rows, values_n)[index] for index in part]
        return float(np.mean([one.mean() for one in chosen]) if level == "sequence" else np.concatenate(chosen).mean())

    tokens = experience.tokens
    assert policy / counted == pytest.approx(-mean(tokens["advantage"]), rel=1e-5, abs=1e-6)
    assert value / counted == pytest.approx(0.5 * mean((tokens["value"] - tokens["target"]) ** 2), rel=1e-5)


@pytest.mark.parametrize(("place", "estimator"), [("reward", "k1"), ("reward", "k3"), ("loss", "k1")])
def test_kl_lowers_the_reward_by_the_chosen_estimator(place: Any, estimator: Any) -> None:
    """Without discount, an advantage is the sum of later rewards minus the value."""
    rows, rewards = trajectories(), np.arange(6.0)
    found = scored(rows)
    config = PpoConfig(kl_in=place, kl_estimator=estimator, whiten=False, gamma=1.0, gae_lambda=1.0)
    experience = Experience.of(rows, rewards, found, config, kl_weight=0.1)
    columns = [by_answer(rows, found[name]) for name in ("log_p", "reference", "value")]
    expected, distances = [], []
    for reward, log_p_t, reference_t, value_t in zip(rewards, *columns, strict=True):
        log_ratios = [float(q - p) for p, q in zip(log_p_t, reference_t, strict=True)]
        k1, k3 = [-x for x in log_ratios], [math.exp(x) - 1 - x for x in log_ratios]
        penalty = [0.0] * len(k1) if place == "loss" else [0.1 * x for x in (k1 if estimator == "k1" else k3)]
        expected += [reward - sum(penalty[t:]) - value for t, value in enumerate(value_t)]
        distances.append(sum(k1))
    assert experience.tokens["advantage"] == pytest.approx(np.array(expected), abs=1e-12)
    assert experience.kl_r == pytest.approx(np.array(distances), abs=1e-12)  # the metric is always k1


def test_explained_variance() -> None:
    target, value = np.array([1.0, 2.0, 6.0]), np.array([0.0, 2.0, 4.0])
    left = np.array([1.0, 0.0, 2.0])
    expected = 1 - ((left - 1) ** 2).sum() / ((target - 3) ** 2).sum()
    assert metrics.explained_variance(value, target) == pytest.approx(expected)
    assert metrics.explained_variance(target + 5, target) == pytest.approx(1.0)
    assert metrics.explained_variance(np.zeros(3), target) == pytest.approx(0.0)
    assert metrics.explained_variance(-target, target) == pytest.approx(-3.0)  # worse than none
    assert metrics.explained_variance(value, np.ones(3)) == 0.0


def test_rollout_metrics_report_seconds_and_speed_by_phase() -> None:
    rows = trajectories()
    experience = Experience.of(rows, np.zeros(6), scored(rows), PpoConfig(), 0.1)
    seconds = {"generating": 2.0, "rewarding": 0.5, "scoring": 4.0}
    found = metrics.rollout_metrics(experience, np.zeros(6), {}, seconds)
    assert {name: found[f"rollout/seconds_{name}"] for name in seconds} == seconds
    assert found["rollout/generated_tokens_per_second"] == sum(len(e.response) for e in rows.trajectories) / 2
    read = sum(len(e.prompt) + len(e.response) for e in rows.trajectories)
    assert found["rollout/scored_tokens_per_second"] == read / 4
    stopwatch = metrics.Stopwatch()
    with stopwatch.measured("scoring"):
        time.sleep(0.01)
    assert 0.01 <= stopwatch.seconds["scoring"] < 5


def test_update_metrics_sum_over_ranks() -> None:
    def work(rank: Threads) -> dict[str, float]:
        updates = metrics.Updates()
        updates.began -= 10
        updates.clipped, updates.responses, updates.trained = 1.0 + rank.index, 10.0, 100.0 * (1 + rank.index)
        return updates.metrics(rank)

    for found in together(2, work):
        assert isinstance(found, dict), found
        assert found["ppo/clip_fraction"] == 3 / 20
        assert found["ppo/seconds_updating"] == pytest.approx(10, abs=2)
        assert found["ppo/trained_tokens_per_second"] == pytest.approx(300 / found["ppo/seconds_updating"])


FIRST = {"reward": 0.0, "entropy": 2.0, "repetition": 0.1, "kl": 0.0, "response_tokens": 40.0}
# Metrics that are still fine, metrics that are not, and the warning about them.
WRONG = {
    "far": ({"kl": -39.0}, {"kl": -41.0}, "-41 nats per response, -1.0 per token"),
    "collapsed": ({"entropy": 0.21}, {"entropy": 0.19}, "the entropy has fallen below"),
    "repeating for reward": (
        {"reward": 1.0, "repetition": 0.24}, {"reward": 0.1, "repetition": 0.26}, "reward and repetition rise",
    ),
    "empty": ({"empty": 0.9}, {"empty": 1.0}, "every response of a rollout is empty"),
    "repeating for nothing": ({"reward": -1.0, "repetition": 0.9}, {"reward": 0.0, "repetition": 0.9}, None),
}  # fmt: skip


def rollout(**changed: float) -> dict[str, float]:
    return {f"rollout/{name}": value for name, value in (FIRST | changed).items()}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_health_warns_once_also_after_a_resume(name: str, resumed: bool, caplog: pytest.LogCaptureFixture) -> None:
    harmless, wrong, message = WRONG[name]
    health = Health(logs=True)
    for number, changed in enumerate([{}, harmless, wrong, wrong]):
        if resumed:
            kept, health = json.dumps(health.state()), Health(logs=True)
            health.resume(json.loads(kept))
        with caplog.at_level(logging.WARNING):
            health.check(rollout(**changed))
        assert len(caplog.messages) == (message is not None and number >= 2), caplog.messages
    if message is not None:
        assert message in caplog.text


def test_health_state_is_equal_on_all_ranks() -> None:
    ranks = [Health(logs=speaks) for speaks in (True, False)]
    for changed in ({}, *(wrong for _, wrong, _ in WRONG.values())):
        for health in ranks:
            health.check(rollout(**changed))
    assert ranks[0].state() == ranks[1].state()
    assert len(ranks[0].state()) == 7  # three metrics of the first rollout, four warnings
