"""The weights of a run, by shape: the recipe's tuned model on the meta device, as training builds it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import nn

from train.config import Config, ModelConfig
from train.engine.optimizer import parameter_groups
from train.models.load import skeleton
from train.objectives import objective_class
from train.tuning import make_tuning
from zerotune.common.errors import UserError
from zerotune.models.find_folder import local_folder
from zerotune.models.precision import DTYPES
from zerotune.models.quantized_size import quantized_bytes, quantized_weights


@dataclass(frozen=True)
class Weight:
    """A parameter; tied ones count once.

    shape: before quantisation. bytes: as loaded. group: of the optimizer, None if it is frozen. unit: the name of the
    transformer layer that it is in, "" outside them. is_quantized: its bytes are not floating-point numbers.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    group: int | None = None
    unit: str = ""
    is_quantized: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_trained(self) -> bool:
        return self.group is not None

    def bytes_in(self, item: int) -> int:
        """Bytes where floating-point weights have `item` bytes: DeepSpeed casts all of them."""
        return self.bytes if self.is_quantized else self.size * item


def precision_of(config: Config) -> str:
    """The precision of a GPU run."""
    return "bf16" if config.run.precision == "auto" else config.run.precision


@contextlib.contextmanager
def local_model(config: Config) -> Iterator[Config]:
    """The recipe, with the folder of its config.json: of a hub model it is fetched alone, for a new model it is made
    (the tokenizer may have fewer tokens than the most that the recipe allows). Temporary folders are removed.
    """
    with tempfile.TemporaryDirectory(prefix="zerotune-plan-") as folder:
        model = config.model
        if model.spec is not None:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            tokens = {"vocab_size": config.tokenizer.vocabulary_size, **dict.fromkeys(names, 0)}
            resolve_name(model.spec.place)(model, config.data.max_length_tokens, tokens).save_pretrained(folder)
            model = dataclasses.replace(model, path=folder, init="random")
        else:
            model = with_config_file(model, "model.path")
        yield dataclasses.replace(config, model=model)


def with_config_file(model: ModelConfig, key: str) -> ModelConfig:
    """With the folder of its config.json, which is fetched if it is on the hub. Raises UserError."""
    if local_folder(model.path, key) is not None:
        return model
    from huggingface_hub import hf_hub_download  # needed for hub names alone

    try:
        path = hf_hub_download(model.path, "config.json", revision=model.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{key}: {model.path} is no folder here, and its config.json could not be fetched ({reason})"
        ) from error
    return dataclasses.replace(model, path=str(Path(path).parent))


def tuned_model(config: Config) -> tuple[nn.Module, set[int]]:
    """The model that the run trains, on the meta device; identities of the weights that are quantised."""
    frozen = DTYPES[precision_of(config)]
    auto = torch.float32 if config.tuning.spec.trains_base else frozen
    described = dataclasses.replace(config.model, init="random")  # its files are not there, or not looked at
    base = skeleton(resolve_name(config.spec.model_class), described)
    base.to(auto if config.model.weights == "auto" else DTYPES[config.model.weights])
    quantized = quantized_weights(base) if config.tuning.quantization != "none" else set()
    # The text of a prompt gives values, no shapes, and needs the tokenizer.
    prompt = dataclasses.replace(config.tuning.prompt, init_text=None)
    wanted = dataclasses.replace(config.tuning, prompt=prompt, quantization="none")
    task = objective_class(config.objective).peft_task_type
    with torch.device("meta"):
        model = make_tuning(wanted, config.run.seed, model=config.model, task=task).apply(base)
    return model, quantized


def weights_of(model: nn.Module, config: Config, quantized: set[int] | None = None) -> Iterator[Weight]:
    """The parameters of a model, in its order. quantized: identities of those that training quantises."""
    groups = parameter_groups(model, config.optim, config.tuning.spec.undecayed)
    group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    layers = [name for name, module in model.named_modules() if type(module).__name__ in _layer_classes(model)]
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        size = parameter.numel() * parameter.element_size()
        is_quantized = id(parameter) in (quantized or ())
        if is_quantized:
            size = quantized_bytes(shape, config.tuning.quantization, config.tuning.double_quantization)
        unit = next((layer for layer in layers if name.startswith(f"{layer}.")), "")
        yield Weight(name, shape, size, group_of.get(id(parameter)), unit, is_quantized)


def _layer_classes(model: nn.Module) -> set[str]:
    get = getattr(model, "get_base_model", None)
    return set(getattr(get() if get else model, "_no_split_modules", None) or ())
