"""F1 and F2: killed with `kill -9` in the middle of epochs, three times, with dropout: the same to the last bit,
from the same rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fault_runs import STEPS, Workplace, Zygote, finished, leftovers, status, weights
from tests.support.reward_models import reward_classifier
from tests.support.training_runs import ROOT, metrics

ENTITIES = {
    "objective": "token_classification",
    "data.train": json.dumps([{"path": str(ROOT / "examples/data/entities.iob2"), "format": "tagged"}]),
}
# Each life dies before this many-th update of its own: so late that a save, which is written beside training, has been
# waited for by the next one.
KILLS = (6, 5, 4)
UPDATE = "train.engine.loop:Loop._update"

NEW = {"model.path": "", "model.width": 32, "model.dropout": 0.1, "tokenizer.vocabulary_size": 300}
FAMILIES = {
    "rnn": {"model.family": "rnn", "model.bptt_tokens": 20},
    "lstm": {"model.family": "lstm"},
    "transformer": {"model.family": "transformer"},
}
LORA = {"tuning.kind": "lora", "tuning.lora.dropout": 0.1}

PPO = {
    "objective": "ppo",
    "ppo.reward": '[{"kind": "model", "path": "CLASSIFIER", "label": "good"}, {"kind": "repetition", "weight": -1}]',
    "ppo.response_tokens": 6,
    "ppo.rollout_prompts": 8,  # five rollouts an epoch, of two steps each
    "ppo.epochs": 2,
    "ppo.kl_target": 1.0,
}

CASES = {
    "single full": ("single", {}),
    "single full adafactor": ("single", {"optim.name": "adafactor"}),
    "single lora": ("single", LORA),
    "single prompt": ("single", {"tuning.kind": "prompt"}),
    "single entities": ("single", ENTITIES | LORA),
    **{
        f"{kind} new {name}": (kind, NEW | options)
        for kind in ("single", "zero3")
        for name, options in FAMILIES.items()
    },
    "single ppo lora": ("single", PPO | {"tuning.kind": "lora"}),
    "ddp full": ("ddp", {}),
    "ddp lora": ("ddp", LORA),
    "ddp ppo full": ("ddp", PPO),
    "zero1 prompt": ("zero1", {"tuning.kind": "prompt"}),
    "zero2 full": ("zero2", {}),
    "zero2 full 8 bit": ("zero2", {"optim.name": "adamw_8bit"}),
    "zero2 entities": ("zero2", ENTITIES),
    "zero2 ppo full": ("zero2", PPO),
    "zero3 full": ("zero3", {}),
    "zero3 lora": ("zero3", LORA),
    "zero3 ppo lora": ("zero3", PPO | {"tuning.kind": "lora"}),
}
SLOW = [case for case in CASES if case.startswith("zero3 new")]


def noting(file: Path) -> dict[str, object]:
    """The order to write down the rows of each step."""
    return {"at": UPDATE, "nth": 0, "do": f"rows {file}"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_three_kills_change_no_bit(case: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    kind, options = CASES[case]
    if "ppo.reward" in options:
        path = str(reward_classifier(tmp_path / "classifier"))
        options = options | {"ppo.reward": options["ppo.reward"].replace("CLASSIFIER", path)}
    names = ("train/policy", "rollout/reward", "rollout/kl_weight") if "ppo" in case else ("train/loss",)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rows, rows_again = tmp_path / "rows", tmp_path / "rows-again"
    processes = zygote.run(workplace.arguments(whole, **options), tmp_path / "whole", kind, [noting(rows)])
    assert set(processes.codes) == {0}, processes.output
    assert list(metrics(whole, names[0])) == list(range(1, STEPS + 1))

    few = kind.startswith("zero") and case not in ("zero2 full", "zero3 full", *SLOW)  # a start costs more
    kills = KILLS[::2] if few else KILLS
    for life, update in enumerate(kills):
        orders = [noting(rows_again), {"at": UPDATE, "nth": update, "do": "SIGKILL"}]  # the later order acts first
        processes = zygote.run(workplace.arguments(cut, **options), tmp_path / f"life{life}", kind, orders)
        assert -9 in processes.codes, processes.output
        assert finished(cut)
    processes = zygote.run(workplace.arguments(cut, **options), tmp_path / "last", kind, [noting(rows_again)])
    assert set(processes.codes) == {0}, processes.output
    assert "resumed from" in processes.output

    assert set(rows_again.read_text().splitlines()) == set(rows.read_text().splitlines())
    for name in names:
        assert metrics(cut, name) == metrics(whole, name), name
    assert weights(cut) == weights(whole)
    assert leftovers(cut) == []
    assert status(cut)["state"] == "finished"
    assert status(cut)["exit_code"] == 0
