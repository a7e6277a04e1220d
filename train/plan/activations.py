"""What the forward pass of one micro-batch keeps for the backward pass, in bytes.

Measured: the tuned model runs on fake tensors, which have shapes and no values, with one and with two of its layers,
and autograd tells which tensors it saves. The difference is a layer; layers whose weights have other shapes are
measured one by one. So are the temporary tensors of a layer's backward pass. Derived: the whole model, checkpointing,
and the loss in the output layer.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from train.tuning.describe import base_of
from zerotune.models import loss_head
from zerotune.models.head_source import gives_logits_unchanged

NAME = "zerotune_plan"
FLOAT = 4
Kind = tuple[tuple[str, tuple[int, ...]], ...]


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
    """Bytes. inside: of all layers. rest: outside the layers. hidden: the input of one layer. layers: their number.

    casts: 16-bit copies of the layers' weights, which autocast keeps until the forward pass ends. work: temporary
    tensors of a layer's backward pass. again: a layer that is computed again, with these.
    """

    inside: int
    rest: int
    hidden: int
    layers: int
    casts: int
    work: int
    again: int

    def kept(self, checkpointing: bool) -> int:
        """At the end of the forward pass. With checkpointing, these are the inputs of all layers."""
        return self.rest + (self.layers * self.hidden if checkpointing else self.inside)


def at_peak(networks: Sequence[Activations], checkpointing: bool, loss: int) -> dict[str, int]:
    """By part, in the loss or in the backward pass of a layer, whichever needs more.

    networks: with one loss, whose layers have their backward passes one after the other. With checkpointing, a layer
    is computed again in its backward pass.
    """
    kept = sum(each.kept(checkpointing) for each in networks)
    copies = sum(each.casts for each in networks) if checkpointing else 0
    work = max(each.again if checkpointing else each.work for each in networks)
    if copies + loss > work:
        return {"activations": kept + copies, "loss": loss}
    return {"activations": kept, "a layer's backward pass": work}


def measure(model: nn.Module, shape: Shape, item: int, kind: str) -> Activations:
    """Of the model on the meta device, which is spoiled by it.

    item: bytes of a number in matrix products. kind: as `Layout.kind`. With one process and DDP, autocast makes the
    16-bit numbers; in ZeRO the weights have that type; in FSDP2 they have, under autocast. Raises RuntimeError for a
    model that runs only with values.
    """
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # it is raised, too
    casts = kind in ("single", "ddp")
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
    kinds = Counter(_kind(layer) for layer in layers)
    sizes: dict[Kind, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.train()

        def saved(*chosen: nn.Module) -> int:
            setattr(parent, name, nn.ModuleList(chosen))
            with torch.autocast("cpu", torch.bfloat16, enabled=item < FLOAT and not kind.startswith("zero")):
                return _saved(model, shape)

        first = saved(layers[0])
        for layer in layers[:0:-1]:
            if _kind(layer) not in sizes:
                sizes[_kind(layer)] = saved(layers[0], layer) - first
        if _kind(layers[0]) not in sizes:  # the only one of its kind; a single layer stays in the rest
            sizes[_kind(layers[0])] = saved(layers[-1], layers[0]) - saved(layers[-1]) if len(layers) > 1 else 0
        largest = max(layers, key=lambda layer: sizes[_kind(layer)])
        setattr(parent, name, nn.ModuleList([largest]))
        with torch.autocast("cpu", torch.bfloat16, enabled=item < FLOAT and not kind.startswith("zero")):
            work = _work(model, base, shape)
            base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            again = _work(model, base, shape)
    setattr(parent, name, nn.ModuleList(layers))
    # The sums along the layers have the type of the embeddings.
    width = base.config.get_text_config().hidden_size * base.get_input_embeddings().weight.element_size()
    copied = sum(item * p.numel() for m in layers for p in m.parameters() if p.ndim > 1 and p.element_size() > item)
    return Activations(
        inside=sum(sizes[each] * count for each, count in kinds.items()),
        rest=first - sizes[_kind(layers[0])],
        hidden=shape.tokens * width,
        layers=len(layers),
        casts=copied if casts else 0,
        work=work,
        again=again,
    )


def _kind(layer: nn.Module) -> Kind:
    """Layers of one kind have weights of the same names and shapes."""
    return tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())


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
        # Dropout keeps no weights on a GPU; a CPU would make all of them.
        return sdpa_attention_forward(module, query, key, value, mask, **{**options, "dropout": 0.0})

    return attention


def _saved(model: nn.Module, shape: Shape) -> int:
    """Bytes of the storages that autograd saves, without parameters."""
    with saving(model) as storages:
        outputs = _forward(model, shape)
    del outputs
    return sum(storages.values())


def _work(model: nn.Module, base: Any, shape: Shape) -> int:
    """Bytes that the backward pass needs at most beside what the forward pass has saved and gradients, without that of
    the embeddings, which comes last. The first of two passes makes the gradients.
    """
    embeddings = base.get_input_embeddings().requires_grad_(False)
    embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))
    for _ in range(2):
        with Meter(*model.parameters()) as meter:
            hidden = _forward(model, shape)
            held = meter.held
            meter.peak = 0
            with torch.autocast("cpu", enabled=False):
                hidden.backward(torch.ones_like(hidden))
    return int(max(meter.peak - held, 0))


def _forward(model: nn.Module, shape: Shape) -> Tensor:
    """The last hidden states; of a classifier its output."""
    ids = torch.zeros((shape.rows, shape.length), dtype=torch.long)
    with loss_head.predicting(None, lambda _layer, hidden_btd, _targets: hidden_btd):
        outputs: Tensor = model(input_ids=ids, use_cache=False)[0]
    return outputs


class Meter(TorchDispatchMode):
    """The bytes that results of operations hold now, and at most."""

    def __init__(self, *inputs: Tensor) -> None:
        """inputs: whose views do not count."""
        super().__init__()
        self.inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.users: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.peak = 0

    @property
    def held(self) -> int:
        """Bytes now."""
        return sum(self.sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.inputs:
                storage = tensor.untyped_storage()
                self.users[storage._cdata] = self.users.get(storage._cdata, 0) + 1
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(tensor, self._freed, storage._cdata)
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, storage: int) -> None:
        self.users[storage] -= 1
        if not self.users[storage]:
            del self.users[storage], self.sizes[storage]


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
    with its part of the weight's gradient. A model that changes its logits after the layer makes all of them at once:
    beside those that `measure` counts, the learned ones, their gradients (twice) and a chunk in float32.
    """
    if not predicts_tokens(model):
        return 0
    layer: Any = loss_head.output_layer(model)
    vocabulary, width = layer.weight.shape
    rows = min(loss_head.chunk_rows(vocabulary, torch.device(device)), tokens)
    if not gives_logits_unchanged(loss_head.causal_lm(model), layer):
        return int(3 * tokens * vocabulary * item + 3 * rows * vocabulary * FLOAT)
    weight = layer.weight
    logits, before = rows * vocabulary, rows * vocabulary if rows < tokens else 0
    copy = 0 if weight.element_size() == item else weight.numel() * item
    gradient = weight.numel() * FLOAT if weight.requires_grad else 0
    product = weight.numel() * item if weight.requires_grad and item < FLOAT else 0
    in_float = FLOAT if item < FLOAT else 0  # the logits, converted before the softmax
    chunk = max(logits * (item + in_float + FLOAT) + before * item, logits * item + product)
    return int(2 * tokens * width * item + copy + gradient + chunk)
