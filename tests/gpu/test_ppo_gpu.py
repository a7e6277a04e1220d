"""PPO on CUDA: `pytest -m gpu`, for whoever has a GPU. One GPU is enough, more are used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.process.test_ppo import BANDIT, Place
from tests.support.ranks import Whole
from tests.support.training_runs import launch, metrics
from tests.unit.train.test_ppo import tiny
from tests.unit.train.test_ppo_rollout import CONFIG, PROMPTS, played, tuned
from train.data.micro_batches import Shape
from train.objectives.ppo.logprobs import Scoring
from train.registry import TUNINGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE, ONE = "cuda", "one_gpu"


class OneDevice(Whole):
    device = torch.device(DEVICE)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["full", "lora", "prompt"])
def test_rollout_and_scoring_agree(kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, with each other and with a CPU."""
    model: Any = tuned(kind).to(DEVICE)
    trajectories, drawn = played(model, monkeypatch, PROMPTS, ranks=OneDevice())
    shape = Shape(packed and TUNINGS[kind].can_pack, 1000, 1000, 100, True, 0)
    found = []
    for ranks, scored in ((OneDevice(), model), (Whole(), tuned(kind))):
        scoring = Scoring(shape, CONFIG, ranks)
        if kind == "full":
            scoring.keep_reference(tiny())
        found.append(scoring.tokens(scored, trajectories))
    assert found[0]["log_p"] == pytest.approx(drawn, abs=1e-4)
    for name in ("log_p", "reference", "value"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-4), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("ppo-gpu"))


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("config", [ONE, "ddp", "zero2", "zero3", "fsdp2"])
def test_a_bandit_is_solved(place: Place, config: str, tuning: str) -> None:
    """In bf16; adapters of a random model learn too slowly for it, and only run. The first rollout's distance is
    rounding alone.
    """
    ranks = 1 if config == ONE else torch.cuda.device_count()
    name = f"{config}-{tuning}"
    options: dict[str, object] = {"run__precision": "bf16", "tuning__kind": tuning, "ppo__kl_weight": 0.0, **BANDIT}
    done = launch(place.words(name, **options), config, ranks, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    run: Path = place.folder / name
    reward, deviation, kl = (
        list(metrics(run, f"rollout/{name}").values()) for name in ("reward", "reward_deviation", "kl")
    )
    if tuning == "full":
        assert reward[-1] > reward[0] + deviation[0]
    assert len(reward) == 16
    assert abs(kl[0]) < 0.05
    assert all(math.isfinite(loss) for loss in metrics(run, "train/policy").values())
