"""Where a run computes and in which precision, before any process group exists."""

from __future__ import annotations

import os

import pytest
import torch
from accelerate.state import AcceleratorState

from eval.distributed import join
from tests.support.fault_runs import rank_environment
from tests.support.training_runs import environment
from train.engine.runtime import Runtime, runs_on_gpu, training_precision
from zerotune.common.errors import UserError
from zerotune.common.errors import UserError as EvaluationError


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an Ampere GPU, as far as anyone asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


def test_a_launch_may_turn_the_gpu_down(gpu, monkeypatch):
    assert runs_on_gpu()
    assert training_precision("auto", runs_on_gpu()) == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not runs_on_gpu()
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        training_precision("fp16", runs_on_gpu())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: pytest.fail("the GPU was asked"))
    assert training_precision("auto", runs_on_gpu()) in ("bf16", "fp32")


def test_an_old_gpu_takes_fp16(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert training_precision("auto", runs_on_gpu()) == "fp16"
    assert training_precision("bf16", runs_on_gpu()) == "bf16"


def test_these_tests_see_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert rank_environment("zero2", 0, 1, None)["CUDA_VISIBLE_DEVICES"] == ""


def test_more_ranks_than_gpus(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="process 1 of this machine has no GPU: start at most 1"):
        Runtime("bf16", 1.0)


def test_fewer_ranks_than_the_batch_script_asked_for(monkeypatch):
    monkeypatch.setenv("ZEROTUNE_RANKS", "4")
    with pytest.raises(UserError, match="4 processes were launched, but this one belongs to a group of 1"):
        Runtime("fp32", 1.0)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(EvaluationError, match="4 processes were requested, but the launcher started 1"):
        join()
