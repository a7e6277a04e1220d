"""Activations as `train.plan` computes them, against what autograd saves in real models of the same shape."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from tests.support.memory_models import CONFIGS, Case
from train.plan.activations import Shape, loss_bytes, measure, saving
from train.plan.weights import quantized_bytes
from train.tuning import make_tuning
from zerotune.models import loss_head

SHAPES = {"packed": Shape(1, 48), "padded": Shape(4, 24, masked=True)}


def tuned(case: Case, device: str) -> torch.nn.Module:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CONFIGS[case.family], dtype=case.load_dtype)
        return make_tuning(case.tuning_config).apply(model).train()


def really_saved(model: torch.nn.Module, shape: Shape, casts: bool) -> int:
    ids = torch.ones((shape.rows, shape.length), dtype=torch.long)
    mask = None
    if shape.masked:
        mask = torch.ones_like(ids)
        mask[0, -5:] = 0
    loss_head.install(model)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=casts),
        saving(model) as storages,
        loss_head.predicting(None, lambda _layer, hidden, _targets: hidden),
    ):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False)
    del outputs
    return sum(storages.values())


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_tensors(family: str, tuning: str, layout: str, precision: str) -> None:
    case, shape = Case("ddp", family, tuning, "adamw", precision), SHAPES[layout]
    planned = measure(tuned(case, "meta"), shape, 4 if precision == "fp32" else 2, casts=precision == "bf16")
    assert planned.layers == 3
    found = really_saved(tuned(case, "cpu"), shape, casts=precision == "bf16")
    assert planned.total(checkpointing=False) == pytest.approx(found, rel=0.1)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    planned = measure(tuned(Case("ddp", "llama", "full", "adamw", "fp32"), "meta"), SHAPES["packed"], 4, casts=False)
    assert planned.hidden == 48 * 36 * 4
    assert planned.total(checkpointing=True) == planned.rest + 3 * planned.hidden + planned.layer


class Meter(TorchDispatchMode):
    """The most bytes that the results of operations hold at once."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        """inputs: whose views do not count."""
        super().__init__()
        self.inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.users: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.inputs:
                storage = tensor.untyped_storage()
                self.users[storage._cdata] = self.users.get(storage._cdata, 0) + 1
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(tensor, self.freed, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def freed(self, storage: int) -> None:
        self.users[storage] -= 1
        if not self.users[storage]:
            del self.users[storage], self.sizes[storage]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [2**25, 2000])
def test_loss(trained: bool, precision: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_head, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(loss_head, "product_dtype", lambda dtype, _device: dtype)  # as on a GPU
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    half = precision == "bf16"
    if half and not trained:
        model.bfloat16()
    model.requires_grad_(trained)
    loss_head.install(model)
    hidden = torch.randn(200, 36, dtype=torch.bfloat16 if half else torch.float32, requires_grad=True)
    targets = torch.randint(0, 131, (1, 200))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        Meter(hidden, targets, *model.parameters()) as meter,
        loss_head.predicting(targets),
    ):
        model.lm_head(hidden[None])
    planned = loss_bytes(model, 200, 2 if half else 4, device="cpu")
    assert planned == pytest.approx(meter.peak, rel=0.1)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(64, 192), (37, 100), (1024, 640)])
def test_quantized_weights_are_exact(shape: tuple[int, int], double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    packed, state = functional.quantize_4bit(
        torch.randn(shape, dtype=torch.bfloat16), quant_type="nf4", compress_statistics=double
    )
    tensors = [packed, state.absmax, state.code]
    if double:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    assert quantized_bytes(shape, "nf4", double) == sum(t.numel() * t.element_size() for t in tensors)
