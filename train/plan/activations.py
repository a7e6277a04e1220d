"""What the forward pass of one micro-batch keeps for the backward pass, in bytes.

Measured: the tuned model runs on fake tensors, which have shapes and no values, with one and with two of its layers,
and autograd tells which tensors it saves. The difference is a layer. Derived: the whole model, checkpointing, and the
loss in the output layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from train.tuning.describe import base_of
from zerotune.models import loss_head

NAME = "zerotune_plan"
FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """A micro-batch. rows x length tokens; masked: whether a mask hides padding. With packing, one row."""

    rows: int
    length: int
    masked: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Activations:
    """Bytes. layer: of one layer. rest: outside the layers. hidden: the input of one layer. layers: their number."""

    layer: int
    rest: int
    hidden: int
    layers: int

    def total(self, checkpointing: bool) -> int:
        """At the peak: all layers, or the input of all and one layer that is computed again."""
        return self.rest + (self.layers * self.hidden + self.layer if checkpointing else self.layers * self.layer)


def measure(model: nn.Module, shape: Shape, item: int, casts: bool) -> Activations:
    """Of the model on the meta device, which is spoiled by it.

    item: bytes of a number in matrix products. casts: whether autocast makes them (one process, DDP), else weights
    have that type (ZeRO, FSDP2). Raises RuntimeError for a model that runs only with values.
    """
    base = base_of(model)
    parent, name, layers = _layers(base)
    AttentionInterface.register(NAME, _attention(shape.masked))
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    base.set_attn_implementation(NAME)
    dtype = torch.float32 if item == FLOAT else torch.bfloat16
    if not casts:
        model.to(dtype)
    if predicts_tokens(model):
        loss_head.install(model)
    saved = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.train()
        for count in (1, 2):
            setattr(parent, name, nn.ModuleList(layers[:count]))
            with torch.autocast("cpu", torch.bfloat16, enabled=casts and item < FLOAT):
                saved.append(_saved(model, shape))
    setattr(parent, name, nn.ModuleList(layers))
    layer = saved[1] - saved[0]
    hidden = shape.tokens * base.config.get_text_config().hidden_size * item
    return Activations(layer, saved[0] - layer, hidden, len(layers))


def _layers(base: nn.Module) -> tuple[nn.Module, str, list[nn.Module]]:
    """(parent, attribute, layers) of the transformer's stack of layers."""
    classes = set(getattr(base, "_no_split_modules", None) or ())
    for parent in base.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) and type(child[0]).__name__ in classes:
                return parent, name, list(child)
    raise RuntimeError("the model has no stack of layers")


def _attention(masked: bool) -> Any:
    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        if masked:
            rows, length = query.shape[0], query.shape[2]
            mask = query.new_ones((rows, 1, length, length), dtype=torch.bool)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    return attention


def _saved(model: nn.Module, shape: Shape) -> int:
    """Bytes of the storages that autograd saves, without parameters."""
    ids = torch.zeros((shape.rows, shape.length), dtype=torch.long)
    with saving(model) as storages, loss_head.predicting(None, lambda _layer, hidden_btd, _targets: hidden_btd):
        outputs = model(input_ids=ids, use_cache=False)
    del outputs
    return sum(storages.values())


@contextlib.contextmanager
def saving(model: nn.Module) -> Iterator[dict[int, int]]:
    """Inside, storages that autograd saves are added to the yielded dict: identity -> bytes, without parameters."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def predicts_tokens(model: nn.Module) -> bool:
    """Whether its output layer is over the vocabulary; that of a classifier is small."""
    base: Any = base_of(model)
    return base.get_output_embeddings() is not None


def loss_bytes(model: nn.Module, tokens: int, item: int, device: str = "cuda") -> int:
    """Of the loss in the output layer (`zerotune.models.loss_head`), if all tokens are learned.

    Hidden states and their gradients, the output layer's weight in `item` bytes and its gradient in float32, and the
    larger of a chunk's logits with their logarithms (and the gradients of the chunk before) and of a chunk's gradients
    with its part of the weight's gradient.
    """
    if not predicts_tokens(model):
        return 0
    weight: Any = loss_head.output_layer(model).weight
    vocabulary, width = weight.shape
    rows = min(loss_head.chunk_rows(vocabulary, torch.device(device)), tokens)
    logits, before = rows * vocabulary, rows * vocabulary if rows < tokens else 0
    copy = 0 if weight.element_size() == item else weight.numel() * item
    gradient = weight.numel() * FLOAT if weight.requires_grad else 0
    product = weight.numel() * item if weight.requires_grad and item < FLOAT else 0
    in_float = FLOAT if item < FLOAT else 0  # the logits, converted before the softmax
    chunk = max(logits * (item + in_float + FLOAT) + before * item, logits * item + product)
    return int(2 * tokens * width * item + copy + gradient + chunk)
