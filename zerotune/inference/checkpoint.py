"""A checkpoint folder: what can be known of it before its weights are loaded, and the loading. Safetensors only."""

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
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
)

from zerotune.common.errors import UserError
from zerotune.common.files import sha256_files
from zerotune.data.own_template import default_template, own_template, tool_template
from zerotune.inference.heads import SequenceClassifier, TokenClassifier
from zerotune.inference.images import Images, load_images
from zerotune.inference.model import LanguageModel
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Head
from zerotune.inference.runner import Model
from zerotune.inference.vision import VisionModel
from zerotune.models import cpu_attention
from zerotune.models.checkpoint_folder import require_checkpoint
from zerotune.models.dequantize import (
    load_dequantized,
    quantization_method,
    refuse_twice,
    require_no_packed,
    require_plain_numbers,
)
from zerotune.models.precision import DTYPES, choose_precision
from zerotune.models.quantization import keep_layout
from zerotune.models.quantization import load_options as quantized_options
from zerotune.models.run_facts import day_of, facts_of
from zerotune.models.weight_files import weight_files

ENDINGS: Mapping[Head, tuple[str, ...]] = {  # of the names of transformers' classes
    "language": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "vision": ("ForConditionalGeneration", "ForVision2Seq"),
    "tokens": ("ForTokenClassification",),
    "sequence": ("ForSequenceClassification",),
}
ABILITIES: Mapping[Head, str] = {
    "language": "continues texts",
    "vision": "reads images and continues texts",
    "tokens": "gives each token a class",
    "sequence": "gives a text a class or a value",
}
# These number positions from pad_token_id + 1 on, and so take fewer tokens than they have positions.
POSITIONS_BEHIND_PAD = (
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
    """A folder that has been looked at. config: transformers' own; end_ids: tokens that end an answer."""

    folder: Path
    name: str
    config: Any
    tokenizer: Any
    end_ids: tuple[int, ...]

    @property
    def quantized(self) -> str | None:
        """How its weights are stored quantised; they are evaluated dequantised."""
        return quantization_method(self.folder)

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that the model was made for; None where there is no bound."""
        config = self.config.get_text_config()
        size = getattr(config, "max_position_embeddings", None)
        if size and config.model_type in POSITIONS_BEHIND_PAD:
            return int(size) - int(config.pad_token_id or 0) - 1
        return int(size) if size else None

    @cached_property
    def run_day(self) -> date | None:
        """The day that the run which trained it told its chat template; None for a checkpoint from elsewhere."""
        return day_of(facts_of(self.folder))

    def prompter(self, template: str, max_new_tokens: int, window_tokens: int, day: date | None = None) -> Prompter:
        """The encoder of its prompts. template: tokenizer (its own), raw, or a .jinja file. day: see `Prompter`."""
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
        )

    @cached_property
    def images(self) -> Images:
        """How it sees images. Raises UserError where it sees none."""
        return load_images(self.folder, self.config, self.tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own; of several the one called default. An older vision model has it in a file of its own."""
        return default_template(self._own_template)

    @property
    def _own_template(self) -> str | dict[str, str] | None:
        return own_template(self.tokenizer, self.folder)

    def digests(self) -> dict[str, str]:
        """sha256 of the weights (all files in order), the configurations, the tokenizer and the chat template."""
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

    def require_template(self, template: str | None, choice: str) -> None:
        """Raises UserError where the checkpoint was trained with another chat template than `template`.

        choice: what --template says.
        """
        trained = facts_of(self.folder).get("template_hash")
        if trained and trained != _sha256(template or ""):
            used = f"sha256 {_sha256(template)[:12]}" if template else "none"
            raise UserError(
                f"{self.folder}: this model was trained with another chat template (sha256 {trained[:12]}, says its "
                f"run.json) than --template {choice} ({used}), which makes its answers worse; give the one that it was "
                "trained with, or allow the other: --allow_other_template true"
            )

    def require(self, heads: Iterable[Head]) -> None:
        """Raises UserError where the checkpoint has not the head that a task needs."""
        names = list(self.config.architectures or ())
        for head in heads:
            if names and not any(name.endswith(ENDINGS[head]) for name in names):
                raise UserError(
                    f"{self.folder}: this is a {names[0]}; the task needs a model that {ABILITIES[head]} "
                    f"({' or '.join('...' + ending for ending in ENDINGS[head])})"
                )

    def load(self, head: Head, precision: str, quantization: str, device: torch.device) -> Model:
        """The weights in `precision`, or in fewer bits. Raises UserError where they are broken or incomplete."""
        kind, answering = LOADERS[head]
        reading: dict[str, Any] = {
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
                model, report = load_dequantized(kind, self.folder, copy.deepcopy(self.config), **reading)
            else:
                require_plain_numbers(self.folder)
                quantized = quantized_options(quantization, reading["dtype"], device)
                model, report = kind.from_pretrained(self.folder, **reading, **quantized)
        except ImportError as error:
            what = f"--quantization {quantization}" if quantization != "none" else f"{self.folder}: it cannot be loaded"
            raise UserError(f"{what}: {error}") from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{self.folder}: the weights cannot be loaded: {error}") from error
        require_no_packed(self.folder, report["unexpected_keys"])
        missing = sorted(report["missing_keys"])
        if missing:  # transformers would fill them with random numbers
            raise UserError(
                f"{self.folder}: {len(missing)} weights are missing, for example {missing[0]}; merge it again"
            )
        model.generation_config = (
            GenerationConfig()
        )  # a checkpoint's own sampling and penalties would change the answers
        model = (model.to(device) if quantization == "none" else model).eval()
        keep_layout(model)
        cpu_attention.use(model)
        return answering(model, self)


# How each head is loaded: transformers' class, and what answers with its model.
LOADERS: Mapping[Head, tuple[Any, Callable[[Any, Checkpoint], Model]]] = {
    "language": (AutoModelForCausalLM, lambda model, checkpoint: LanguageModel(model, checkpoint.tokenizer)),
    "vision": (AutoModelForImageTextToText, lambda model, checkpoint: VisionModel(model, checkpoint.images)),
    "tokens": (AutoModelForTokenClassification, lambda model, checkpoint: TokenClassifier(model)),
    "sequence": (AutoModelForSequenceClassification, lambda model, checkpoint: SequenceClassifier(model)),
}


def look(folder: str, name: str) -> Checkpoint:
    """What can be known without the weights. Raises UserError naming what is missing."""
    path = require_checkpoint(folder)
    weight_files(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        ends = end_ids(path, config)
    except Exception as error:  # transformers and tokenizers raise whatever a broken file makes them stumble over
        reason = str(error) or type(error).__name__
        raise UserError(f"{folder}: its configuration or tokenizer cannot be read: {reason}") from error
    return Checkpoint(path, name, config, tokenizer, ends)


def read_template(file: str) -> str:
    """A chat template from a .jinja file."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file}: neither tokenizer nor raw nor a readable .jinja file ({error})") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def end_ids(path: Path, config: Any) -> tuple[int, ...]:
    """What ends an answer by the generation settings of a model's folder, or by its configuration."""
    settings = GenerationConfig.from_pretrained(path) if (path / "generation_config.json").exists() else config
    return listed(getattr(settings, "eos_token_id", None))


def listed(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Token ids as transformers' configurations hold them: one, several or none. Id 0 is a token."""
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
