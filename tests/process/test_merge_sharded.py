"""Merging what real runs leave behind: one process, DDP and ZeRO give the same hand-over."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.training_runs import ROOT, arguments, environment, launch, write_rows
from tests.support.tuned_runs import tiny_model

TUNINGS = {  # sharding, options
    "full": ("zero3", {}),
    "lora": ("zero3", {"tuning.kind": "lora", "tuning.lora.rank": 4, "tuning.lora.modules_to_save": "[embed_tokens]"}),
    "prompt": ("zero2", {"tuning.kind": "prompt"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model(folder / "base", "qwen2")
    return folder, write_rows(folder)


def handed_over(place, name, config=None, ranks=1, **options):
    folder, rows = place
    chosen = {"model.path": folder / "base", "model.init": "pretrained", "duration.max_steps": 3, **options}
    done = launch(arguments(folder / name, rows, **chosen), config, ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FutureWarning" not in done.stderr
    assert "built successfully" not in done.stdout
    command = [sys.executable, "-m", "train.merge", str(folder / name), str(folder / f"{name}-merged")]
    merged = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert merged.returncode == 0, merged.stderr[-3000:]
    return AutoModelForCausalLM.from_pretrained(folder / f"{name}-merged")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_sharded_run_hands_over_the_same(place, tuning):
    config, options = TUNINGS[tuning]
    expected = handed_over(place, f"{tuning}-one", **options).state_dict()
    options = {"batch.tokens_per_micro_batch": 256, **options}
    found = handed_over(place, f"{tuning}-{config}", config, 2, **options).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
