"""The rollout samples tokens with the probability that scoring gives them, with every tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.ranks import Whole
from tests.unit.train.test_ppo import Reads, tiny
from train.config import LoraConfig, PromptConfig, TuningConfig
from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape
from train.objectives.ppo import metrics
from train.objectives.ppo.logprobs import Scoring
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.rollout import generation_requests, sample_responses
from train.objectives.ppo.trajectories import Trajectories
from train.registry import TUNINGS
from train.tuning import make_tuning
from zerotune.inference import generation, plain_generation
from zerotune.inference.causal_lm import Network
from zerotune.inference.sampling import sample as draw
from zerotune.models.token_statistics import add_value_head
from zerotune.models.virtual_tokens import prompt_as_tokens

PROMPTS = [tuple(range(5, 8 + k)) for k in range(8)] + [(40 + k, *range(50, 51 + k)) for k in range(8)]
CONFIG, SOLO = PpoConfig(response_tokens=7), Whole()


def tuned(kind: str) -> Any:
    """The tiny model with trained-looking adapter or prompt weights."""
    config = TuningConfig(kind, lora=LoraConfig(rank=4), prompt=PromptConfig(virtual_tokens=3))
    model: Any = make_tuning(config).apply(tiny())
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "prompt_encoder" in name:
            torch.nn.init.normal_(parameter, std=0.05 if "lora_B" in name else 0.3)
    add_value_head(model)
    return model.eval()


def played(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[tuple[int, ...]],
    config: PpoConfig = CONFIG,
    ranks: Any = SOLO,
) -> tuple[Trajectories, list[float]]:
    """Sampled responses, and the log-probability of each token when it was sampled."""
    found: dict[int, list[float]] = {}

    def recording(rows: Any, logits_bv: torch.Tensor) -> list[int]:
        tokens = draw(rows, logits_bv)
        for row, log_p_v, token in zip(rows, (logits_bv / config.temperature).log_softmax(-1), tokens, strict=True):
            found.setdefault(row.index, []).append(float(log_p_v[token]))
        return tokens

    for engine in (generation, plain_generation):
        monkeypatch.setattr(engine, "sample", recording)
    given = [Prompt(ids, "r") for ids in prompts]
    asked = generation_requests(given, config, (6, 9), (0, 1), greedy=False)
    trajectories = Trajectories(sample_responses(model, Reads(), asked, given, ranks))
    # Transformers' loop also samples for finished rows until all have finished.
    return trajectories, [
        x for k, trajectory in enumerate(trajectories.trajectories) for x in found[k][: len(trajectory.response)]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("engine", ["shared beginnings", "padded on the left"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["full", "lora", "prompt"])
def test_rollout_and_scoring_agree(
    kind: str, packed: bool, engine: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = tuned(kind), replace(CONFIG, temperature=temperature)
    near = 1e-5 / min(temperature, 1)  # rounding grows as logits do
    if engine == "padded on the left":
        monkeypatch.setattr(Network, "_prefixes_can_be_shared", lambda network: False)
    trajectories, drawn = played(model, monkeypatch, PROMPTS, config)
    assert len({len(trajectory.prompt) for trajectory in trajectories.trajectories}) > 1
    assert len({len(trajectory.response) for trajectory in trajectories.trajectories}) > 1
    for tokens_per_micro_batch in (1, 1000):  # one row at a time, and all together
        shape = Shape(packed and TUNINGS[kind].can_pack, 1000, tokens_per_micro_batch, 100, True, 0)
        scoring = Scoring(shape, config, Whole())
        if kind == "full":
            scoring.keep_reference(tiny())
        scored = scoring.tokens(model, trajectories)
        assert scored["log_p"] == pytest.approx(drawn, abs=near)
        plain = tiny()
        for index, trajectory in enumerate(trajectories.trajectories):
            logits_tv = plain(input_ids=torch.tensor([[*trajectory.prompt, *trajectory.response]])).logits[0]
            log_p_tv = (logits_tv[len(trajectory.prompt) - 1 : -1] / temperature).log_softmax(-1)
            expected = log_p_tv.gather(1, torch.tensor(trajectory.response)[:, None])[:, 0].tolist()
            own = slice(int(trajectories.starts[index]), int(trajectories.starts[index + 1]))
            assert scored["reference"][own] == pytest.approx(expected, abs=near)
    _, alone = played(model, monkeypatch, PROMPTS[:1], config)
    assert drawn[: len(alone)] == pytest.approx(alone, abs=near)


class Writes:
    """A tokenizer whose tokens are letters, except for white space and a special token."""

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join({20: " ", 21: "\n", 22: "", 23: "!"}.get(int(token), "a") for token in ids)


@pytest.mark.parametrize(
    ("tokens", "stops", "share"),
    [
        ([6], (), 1.0),  # ends at once
        ([20, 21, 6], (), 1.0),
        ([20] * 7, (), 1.0),
        ([22, 6], (), 1.0),
        ([20, 23], ("!",), 1.0),  # cut at once
        ([20, 30, 6], (), 0.0),
        ([30, 23], ("!",), 0.0),
        ([23, 6], (), 0.0),
    ],
)
def test_blank_responses_are_counted_as_empty(
    tokens: list[int], stops: tuple[str, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "sample", lambda rows, logits_bv: [tokens[len(row.ids)] for row in rows])
    given = [Prompt((5, 7), "r", stops)]
    asked = generation_requests(given, CONFIG, (6,), (0, 1), greedy=False)
    (trajectory,) = sample_responses(tuned("full"), Writes(), asked, given, Whole())
    assert list(trajectory.response) == tokens
    assert metrics.response_metrics(Trajectories([trajectory]))["empty"] == share


def test_scoring_gathers_the_reference_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Whole):
        gathered = 0

        def whole_copy(self, model: Any) -> Any:
            self.gathered += 1
            return super().whole_copy(model)

    model, ranks = tuned("full"), Counting()
    trajectories, _ = played(model, monkeypatch, PROMPTS[:4])
    scoring = Scoring(Shape(True, 1000, 1, 100, True, 0), CONFIG, ranks)  # a pass for each answer
    scoring.keep_reference(tiny())
    scoring.tokens(model, trajectories)
    assert ranks.gathered == 1


def test_prompt_as_tokens_restores_the_embeddings() -> None:
    model = tuned("prompt")
    base = model.get_base_model()
    embedding, ids = base.get_input_embeddings(), torch.tensor([[7, 8, 9]])
    with prompt_as_tokens(model) as before:
        assert before == (90, 91, 92)
        behind = base(input_ids=torch.tensor([[*before, 7, 8, 9]])).logits[:, 3:]
    assert base.get_input_embeddings() is embedding
    assert torch.allclose(behind, model(input_ids=ids).logits[:, 3:], atol=1e-5)
    assert not torch.allclose(behind, base(input_ids=ids).logits, atol=1e-2)
    with prompt_as_tokens(tuned("lora")) as none:
        assert none == ()
