"""A checkpoint folder: its configuration and tokenizer, and loading of its weights (safetensors only)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
)

from zerotune.common.errors import UserError
from zerotune.common.files import sha256_files
from zerotune.data.chat_template_file import default_template, own_template, tool_template
from zerotune.inference.classifiers import SequenceClassifier, TokenClassifier
from zerotune.inference.images import Images, load_images
from zerotune.inference.model import LanguageModel
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Head
from zerotune.inference.runner import Model
from zerotune.inference.vision import VisionModel
from zerotune.models import cpu_attention
from zerotune.models.dequantize import (
    load_dequantized,
    quantization_method,
    refuse_twice,
    require_no_packed,
    require_plain_numbers,
)
from zerotune.models.find_folder import require_checkpoint
from zerotune.models.numeric import AutoNumericLM, settings_of
from zerotune.models.precision import DTYPES, choose_precision
from zerotune.models.quantization import keep_layout
from zerotune.models.quantization import load_options as quantized_options
from zerotune.models.recurrent import register
from zerotune.models.run_facts import read_run_json, system_prompt_of, template_date_of
from zerotune.models.weight_files import weight_files

CLASS_SUFFIXES: Mapping[Head, tuple[str, ...]] = {  # of transformers class names
    "language": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "vision": ("ForConditionalGeneration", "ForVision2Seq"),
    "tokens": ("ForTokenClassification",),
    "sequence": ("ForSequenceClassification",),
}
ABILITIES: Mapping[Head, str] = {
    "language": "generates text",
    "vision": "reads images and generates text",
    "tokens": "classifies tokens",
    "sequence": "classifies texts or predicts a value",
}
# These models number positions from pad_token_id + 1, so their context is shorter than max_position_embeddings.
POSITIONS_AFTER_PAD = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder. config: of transformers; end_ids: tokens that end generation."""

    folder: Path
    name: str
    config: Any
    tokenizer: Any
    end_ids: tuple[int, ...]

    @property
    def quantized(self) -> str | None:
        """The quantisation of the stored weights, which are dequantised on loading; None for ordinary weights."""
        return quantization_method(self.folder)

    @property
    def context_tokens(self) -> int | None:
        """Maximum sequence length of the model; None if unlimited."""
        config = self.config.get_text_config()
        size = getattr(config, "max_position_embeddings", None)
        if size and config.model_type in POSITIONS_AFTER_PAD:
            return int(size) - int(config.pad_token_id or 0) - 1
        return int(size) if size else None

    @cached_property
    def template_date(self) -> date | None:
        """The date that its training run passed to the chat template; None if no run trained it."""
        return template_date_of(read_run_json(self.folder))

    @cached_property
    def system_prompt(self) -> str | None:
        """The system message of its training; None if no run trained it."""
        return system_prompt_of(read_run_json(self.folder))

    def prompter(
        self,
        template: str,
        max_new_tokens: int,
        window_tokens: int,
        day: date | None = None,
        system_prompt: str = "",
    ) -> Prompter:
        """Its prompt encoder. template: tokenizer (its own), raw, or a .jinja file. For the rest see `Prompter`."""
        return Prompter(
            self.tokenizer,
            template=self.chat_template if template in ("tokenizer", "raw") else read_template(template),
            raw=template == "raw",
            context_tokens=self.context_tokens,
            max_new_tokens=max_new_tokens,
            window_tokens=window_tokens,
            end_ids=self.end_ids,
            name=self.name,
            labels=getattr(self.config, "id2label", None) or {},
            images=lambda: self.images,
            day=day,
            tool_template=tool_template(self._own_template) if template == "tokenizer" else None,
            system_prompt=system_prompt,
            reads_numbers=settings_of(self.config) is not None,
        )

    @cached_property
    def images(self) -> Images:
        """Its image processor. Raises UserError if it takes no images."""
        return load_images(self.folder, self.config, self.tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's template (of several, "default"); older vision models store it in a separate file."""
        return default_template(self._own_template)

    @property
    def _own_template(self) -> str | dict[str, str] | None:
        return own_template(self.tokenizer, self.folder)

    def digests(self) -> dict[str, str]:
        """sha256 of weights (all files in order), configurations, tokenizer and chat template."""
        files = {
            "weights": sorted(self.folder.glob("*.safetensors")),
            "config": [self.folder / "config.json", *sorted(self.folder.glob("*processor_config.json"))],
            "tokenizer": sorted({path for names in TOKENIZER_FILES for path in self.folder.glob(names)}),
        }
        digests = {}
        for what, paths in files.items():
            found = zip(sha256_files(paths), paths, strict=True)
            lines = "".join(f"{digest}  {path.name}\n" for digest, path in found)
            digests[what] = hashlib.sha256(lines.encode()).hexdigest()
        return digests | {"chat_template": _sha256(self.chat_template or "")}

    def require_template(self, template: str | None, option: str) -> None:
        """Raise UserError if the checkpoint was trained with a chat template other than `template`.

        option: the value of --template.
        """
        trained = read_run_json(self.folder).get("template_hash")
        if trained and trained != _sha256(template or ""):
            used = f"sha256 {_sha256(template)[:12]}" if template else "none"
            raise UserError(
                f"{self.folder}: this model was trained with another chat template (sha256 {trained[:12]} in its "
                f"run.json) than --template {option} ({used}), which worsens its answers; pass the template that it "
                "was trained with, or accept the difference: --allow_other_template true"
            )

    def require(self, heads: Iterable[Head]) -> None:
        """Raise UserError if the checkpoint lacks the head that a task needs."""
        names = list(self.config.architectures or ())
        for head in heads:
            if names and not any(name.endswith(CLASS_SUFFIXES[head]) for name in names):
                raise UserError(
                    f"{self.folder}: this is a {names[0]}; the task needs a model that {ABILITIES[head]} "
                    f"({' or '.join('...' + suffix for suffix in CLASS_SUFFIXES[head])})"
                )

    def load(self, head: Head, precision: str, quantization: str, device: torch.device) -> Model:
        """The model in `precision`, optionally quantised. Raises UserError if weights are damaged or missing."""
        kind, wrap = LOADERS[head]
        options: dict[str, Any] = {
            "dtype": DTYPES[choose_precision(precision, device.type == "cuda")],
            "use_safetensors": True,
            "local_files_only": True,
            "trust_remote_code": False,
            "output_loading_info": True,
        }
        if quantization != "none":
            refuse_twice(self.folder, "--quantization", quantization)
        try:
            if self.quantized:
                model, report = load_dequantized(kind, self.folder, copy.deepcopy(self.config), **options)
            else:
                require_plain_numbers(self.folder)
                quantized = quantized_options(quantization, options["dtype"], device)
                model, report = kind.from_pretrained(self.folder, **options, **quantized)
        except ImportError as error:
            what = f"--quantization {quantization}" if quantization != "none" else f"{self.folder}: it cannot be loaded"
            raise UserError(f"{what}: {error}") from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{self.folder}: the weights cannot be loaded: {error}") from error
        require_no_packed(self.folder, report["unexpected_keys"])
        missing = sorted(report["missing_keys"])
        if missing:  # transformers would initialise them randomly
            raise UserError(
                f"{self.folder}: {len(missing)} weights are missing, for example {missing[0]}; merge it again"
            )
        model.generation_config = GenerationConfig()  # the checkpoint's own sampling settings would change the answers
        model = (model.to(device) if quantization == "none" else model).eval()
        keep_layout(model)
        cpu_attention.use(model)
        return wrap(model, self)


# For each head: the transformers class that loads it, and the wrapper that answers requests.
LOADERS: Mapping[Head, tuple[Any, Callable[[Any, Checkpoint], Model]]] = {
    "language": (AutoNumericLM, lambda model, checkpoint: LanguageModel(model, checkpoint.tokenizer)),
    "vision": (AutoModelForImageTextToText, lambda model, checkpoint: VisionModel(model, checkpoint.images)),
    "tokens": (AutoModelForTokenClassification, lambda model, checkpoint: TokenClassifier(model)),
    "sequence": (AutoModelForSequenceClassification, lambda model, checkpoint: SequenceClassifier(model)),
}


def open_checkpoint(folder: str, name: str) -> Checkpoint:
    """Open a checkpoint without its weights. Raises UserError naming what is missing."""
    path = require_checkpoint(folder)
    weight_files(path)
    register()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        ends = end_ids(path, config)
    except Exception as error:  # transformers and tokenizers raise any type for a damaged file
        reason = str(error) or type(error).__name__
        raise UserError(f"{folder}: its configuration or tokenizer cannot be read: {reason}") from error
    return Checkpoint(path, name, config, tokenizer, ends)


def read_template(file: str) -> str:
    """Read a chat template from a .jinja file. Raises UserError."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file}: must be tokenizer, raw or a readable .jinja file ({error})") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def end_ids(path: Path, config: Any) -> tuple[int, ...]:
    """The end tokens in a model's generation_config.json, else in its configuration."""
    settings = GenerationConfig.from_pretrained(path) if (path / "generation_config.json").exists() else config
    return as_tuple(getattr(settings, "eos_token_id", None))


def as_tuple(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Token ids of a transformers configuration, which holds one, several or none. Id 0 is a valid token."""
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
