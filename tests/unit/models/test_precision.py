"""Which precision a device gets, and that every name of one means something."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from eval.config import Config as EvalConfig
from train.config import MergeConfig, ModelConfig, RunConfig
from zerotune.common.schema import fields_of
from zerotune.models import precision
from zerotune.models.precision import DTYPES, choose_precision


@pytest.mark.parametrize(
    ("kind", "name"),
    [(RunConfig, "precision"), (EvalConfig, "precision"), (ModelConfig, "weights"), (MergeConfig, "weights")],
)
def test_every_name_of_a_precision_is_known(kind: type, name: str) -> None:
    assert set(get_args(fields_of(kind)[name])) - {"auto"} <= set(DTYPES)


def test_auto_is_what_the_hardware_multiplies_at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, chosen in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=supported: found)
        assert choose_precision("auto", on_gpu=True) == chosen
    for supported, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda found=supported: found)
        assert choose_precision("auto", on_gpu=False) == chosen
    assert [choose_precision(name, on_gpu=False) for name in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]


def test_a_cpu_multiplies_bf16_where_torch_says_so() -> None:
    assert precision._cpu_multiplies_bf16() == (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )
