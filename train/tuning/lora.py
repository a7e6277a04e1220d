"""LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314) with PEFT: low-rank updates of frozen weights."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import ModelConfig, TuningConfig
from train.models.load import head_parts, seeded
from train.tuning.describe import write_description, write_json
from zerotune.common.errors import UserError
from zerotune.models.dequantize import refuse_twice
from zerotune.models.folder import resolve
from zerotune.models.quantization import keep_layout

if TYPE_CHECKING:
    from peft import LoraConfig as PeftConfig

ADAPTER = "default"  # PEFT's name of the only adapter, part of the names of the trained weights
HALF = (torch.float16, torch.bfloat16)
# PEFT's list of state-space models, and the modules that it refuses there.
STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
UNFIT = ("conv1d", "out_proj")

log = logging.getLogger(__name__)


class Lora:
    """Trains adapters on the target modules, and by options also biases and complete modules.

    All trained weights are in float32, for any dtype of the base: 16 bits would lose small updates. Embeddings with
    new rows are trained and saved completely.
    """

    def __init__(
        self, config: TuningConfig, seed: int = 0, *, model: ModelConfig | None = None, task: str = "CAUSAL_LM"
    ) -> None:
        if config.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(f"tuning.quantization: {config.quantization} needs bitsandbytes: pip install bitsandbytes")
        if config.quantization != "none" and model is not None and model.path:
            folder = resolve(model.path, model.revision, code=model.trust_remote_code)
            refuse_twice(folder, "tuning.quantization", config.quantization)
        self.config, self.seed, self.task = config, seed, task

    def load_options(self, dtype: torch.dtype) -> Mapping[str, Any]:
        """The quantisation of the base. dtype: of the forward pass, and of weights that are not quantised."""
        if self.config.quantization == "none":
            return {}
        from transformers import BitsAndBytesConfig  # imports bitsandbytes, which takes time: only if needed

        if self.config.quantization == "int8":  # bitsandbytes logs every cast of an input
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=self.config.double_quantization,
                bnb_4bit_compute_dtype=dtype,
            )
        }

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with adapters; all other weights are frozen. New weights depend only on the seed.

        Raises UserError for a target that is not a module's name, with similar names.
        """
        from peft import get_peft_model  # takes seconds: only if needed

        base: Any = model
        if self.config.quantization == "nf4":
            keep_layout(base)
        description = self._description(base)
        base.requires_grad_(False)
        try:
            with seeded(self.seed), warnings.catch_warnings():
                # If one of two tied matrices has an adapter, train.merge writes two matrices.
                warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT's own call
                tuned: nn.Module = get_peft_model(base, description)
        except ValueError as error:  # PEFT does not support this kind of module
            raise UserError(f"tuning.lora: {error}") from error
        _train_in_float32(tuned)
        if getattr(base, "is_activation_checkpointing", False):  # PEFT skips this for a quantised base
            base.enable_input_require_grads()
        return tuned

    def save(self, state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
        """Write the model's config and the adapter's config, as resolved by PEFT."""
        write_description(model, folder)
        adapters: Any = model
        adapters.peft_config[ADAPTER].save_pretrained(folder)
        path = folder / "adapter_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("target_modules", "exclude_modules"):  # sets, whose order differs between processes
            if isinstance(content.get(key), list):
                content[key].sort()
        write_json(path, content)

    def _description(self, model: Any) -> PeftConfig:
        from peft import LoraConfig

        lora = self.config.lora
        saved = list(lora.modules_to_save)
        head = head_parts(model) if self.task != "CAUSAL_LM" else []
        saved += [name for name in head if name not in saved]
        if getattr(model, "resized_from_tokens", None) is not None:
            embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
            saved += [name for name in map(_last_name(model), embeddings) if name and name not in saved]
        targets = lora.targets
        if targets != "all-linear":
            targets = [targets] if isinstance(targets, str) else list(targets)
            _require_modules(model, "tuning.lora.targets", targets, only=(nn.Linear, nn.Embedding, nn.Conv1d))
        _require_modules(model, "tuning.lora.modules_to_save", saved)
        return LoraConfig(
            task_type=self.task,
            r=lora.rank,
            lora_alpha=lora.alpha,  # declared as int, but only divided
            lora_dropout=lora.dropout,
            target_modules=targets,
            exclude_modules=[*head, *self._unfit(model, targets)] or None,
            bias=lora.bias,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            modules_to_save=saved or None,
            ensure_weight_tying=_ties(model, saved, targets),
        )

    def _unfit(self, model: Any, targets: str | list[str]) -> list[str]:
        """Modules that PEFT cannot adapt in state-space models, whose kernels read the weights directly."""
        if getattr(model.config, "model_type", None) not in STATE_SPACE:
            return []
        if targets == "all-linear":
            log.info("tuning.lora.targets: all-linear excludes %s, which LoRA cannot adapt here", ", ".join(UNFIT))
            return list(UNFIT)
        named = [name for name in targets if name.rpartition(".")[2] in UNFIT]
        if named:
            raise UserError(
                f"tuning.lora.targets: {named[0]} cannot be adapted in a {model.config.model_type}, whose kernels read "
                "its weights directly; name other layers (in_proj, ...), or use all-linear"
            )
        return []


def _last_name(model: nn.Module) -> Any:
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return lambda module: names.get(id(module))


def _require_modules(model: nn.Module, key: str, wanted: list[str], only: tuple[type, ...] = ()) -> None:
    """Raise UserError for a name that no module (of the types `only`) has."""
    from transformers.pytorch_utils import Conv1D

    kinds = (*only, Conv1D) if only else ()
    modules = {name: module for name, module in model.named_modules() if name}
    fitting = {name.rpartition(".")[2]: None for name, m in modules.items() if not kinds or isinstance(m, kinds)}
    for name in wanted:
        found = {path: m for path, m in modules.items() if f".{path}".endswith(f".{name}")}
        if not found:
            near = (
                difflib.get_close_matches(name.rpartition(".")[2], list(fitting), n=3, cutoff=0.4) or list(fitting)[:8]
            )
            raise UserError(f"{key}: the model has no module {name}; similar names are {', '.join(near)}")
        unfit = [m for m in found.values() if kinds and not isinstance(m, kinds)]
        if unfit:
            inner = sorted({n.rpartition(".")[2] for n, m in next(iter(unfit)).named_modules() if isinstance(m, kinds)})
            inside = f"; name the linear layers inside: {', '.join(inner)}" if inner else ""
            raise UserError(f"{key}: {name} is a {type(unfit[0]).__name__}, which LoRA cannot adapt{inside}")


def _ties(model: Any, saved: list[str], targets: str | list[str]) -> bool:
    """Whether trained copies of input and output embeddings must stay one matrix."""
    entry, exit_ = model.get_input_embeddings(), model.get_output_embeddings()
    if entry is None or exit_ is None or entry.weight is not exit_.weight:
        return False
    pair = {_last_name(model)(entry), _last_name(model)(exit_)}
    copied = pair & {name.rpartition(".")[2] for name in saved}
    adapted = pair & {name.rpartition(".")[2] for name in targets} if isinstance(targets, list) else set()
    if copied and adapted:
        raise UserError(
            f"tuning.lora: {', '.join(sorted(pair))} share one matrix in this model; {', '.join(sorted(copied))} in "
            f"modules_to_save trains it completely, so remove {', '.join(sorted(adapted))} from targets"
        )
    return bool(copied)


def _train_in_float32(tuned: nn.Module) -> None:
    """Store trained copies of modules and biases in float32, as PEFT does with adapters. Their outputs keep the dtype
    of the frozen model."""
    from peft.utils import ModulesToSaveWrapper

    for module in list(tuned.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            copy = module.modules_to_save[ADAPTER]
            dtype = next((p.dtype for p in module.original_module.parameters()), torch.float32)
            if dtype in HALF:
                copy.float()
                copy.register_forward_pre_hook(_to_own_dtype)
                copy.register_forward_hook(_to_dtype(dtype))
        elif type(module) is nn.Linear and module.weight.dtype in HALF and not module.weight.requires_grad:
            bias = getattr(module, "bias", None)
            if bias is not None and bias.requires_grad:
                bias.data = bias.data.float()
                module.__class__ = Float32BiasLinear


class Float32BiasLinear(nn.Linear):
    """A frozen 16-bit matrix with a trained float32 bias."""

    def forward(self, input: Tensor) -> Tensor:
        """Rounds the bias to the weight's dtype before adding it."""
        return F.linear(input, self.weight, self.bias.to(self.weight.dtype))


def _to_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(p.dtype for p in module.parameters())  # read each time: DeepSpeed may have cast the module
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _to_dtype(dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        values = isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 0  # a scalar is a loss
        return output.to(dtype) if values else output

    return hook
