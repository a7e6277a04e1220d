"""A checkpoint folder: what can be known of it before its weights are loaded, and the loading. Safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from eval.errors import UserError
from eval.files import sha256_file
from eval.images import Images, load_images
from eval.model import LanguageModel
from eval.prompt import Prompter
from eval.protocols import Head
from eval.runner import Model
from eval.vision import VisionModel

ENDINGS: Mapping[Head, tuple[str, ...]] = {  # of the names of transformers' classes
    "language": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "vision": ("ForConditionalGeneration", "ForVision2Seq"),
    "tokens": ("ForTokenClassification",),
    "sequence": ("ForSequenceClassification",),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has been looked at. config: transformers' own; end_ids: tokens that end an answer."""

    folder: Path
    name: str
    config: Any
    tokenizer: Any
    end_ids: tuple[int, ...]

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that the model was made for; None where there is no bound."""
        size = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(size) if size else None

    def prompter(self, template: str, max_new_tokens: int, window_tokens: int) -> Prompter:
        """The encoder of its prompts. template: tokenizer (its own), raw, or a .jinja file."""
        return Prompter(
            self.tokenizer,
            template=self.chat_template if template in ("tokenizer", "raw") else read_template(template),
            raw=template == "raw",
            context_tokens=self.context_tokens,
            max_new_tokens=max_new_tokens,
            window_tokens=window_tokens,
            end_ids=self.end_ids,
            name=self.name,
            images=lambda: self.images,
        )

    @cached_property
    def images(self) -> Images:
        """How it sees images. Raises UserError where it sees none."""
        return load_images(self.folder, self.config, self.tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own; of several the one called default. An older vision model has it in a file of its own."""
        template = self.tokenizer.chat_template
        if not template and (self.folder / "chat_template.json").is_file():
            template = json.loads((self.folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
        return template.get("default") if isinstance(template, dict) else template

    def digests(self) -> dict[str, str]:
        """sha256 of the weights (all files in order), the tokenizer and the chat template."""
        files = {
            "weights": sorted(self.folder.glob("*.safetensors")),
            "tokenizer": sorted(self.folder.glob("tokenizer*.json")),
        }
        digests = {}
        for what, paths in files.items():
            lines = "".join(f"{sha256_file(path)}  {path.name}\n" for path in paths)
            digests[what] = hashlib.sha256(lines.encode()).hexdigest()
        return digests | {"chat_template": hashlib.sha256((self.chat_template or "").encode()).hexdigest()}

    def require(self, heads: Iterable[Head]) -> None:
        """Raises UserError where the checkpoint has not the head that a task needs."""
        names = list(self.config.architectures or ())
        for head in heads:
            if names and not any(name.endswith(ENDINGS[head]) for name in names):
                raise UserError(
                    f"{self.folder}: this is a {names[0]}; the task needs a model with a {head} head "
                    f"({' or '.join('...' + ending for ending in ENDINGS[head])})"
                )

    def load(self, head: Head, precision: str, device: torch.device) -> Model:
        """The weights, in `precision`, on `device`. Raises UserError where they are broken or incomplete."""
        dtype = DTYPES[choose_precision(precision, device)]
        try:
            kind = AutoModelForImageTextToText if head == "vision" else AutoModelForCausalLM
            model, report = kind.from_pretrained(
                self.folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{self.folder}: the weights cannot be loaded: {error}") from error
        missing = sorted(report["missing_keys"])
        if missing:  # transformers would fill them with random numbers
            raise UserError(
                f"{self.folder}: {len(missing)} weights are missing, for example {missing[0]}; merge it again"
            )
        model.generation_config = (
            GenerationConfig()
        )  # a checkpoint's own sampling and penalties would change the answers
        model = model.to(device).eval()
        return VisionModel(model, self.images) if head == "vision" else LanguageModel(model, self.tokenizer)


def look(folder: str, name: str) -> Checkpoint:
    """What can be known without the weights. Raises UserError naming what is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{folder}: there is no such folder (a hub model: `hf download NAME --local-dir {folder}` first)"
        )
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: this is an adapter without its base model; merge it: python -m train.merge {folder} OUT"
        )
    if not (path / "config.json").exists():
        raise UserError(f"{folder}: there is no config.json; a checkpoint folder in Hugging Face layout is needed")
    if not list(path.glob("*.safetensors")):
        found = ", ".join(p.name for p in sorted(path.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        why = f"only {found}, which can run foreign code when loaded" if found else "no weights"
        raise UserError(f"{folder}: there are {why}; save it as safetensors")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its configuration or tokenizer cannot be read: {error}") from error
    return Checkpoint(path, name, config, tokenizer, _end_ids(path, config))


def read_template(file: str) -> str:
    """A chat template from a .jinja file."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file}: neither tokenizer nor raw nor a readable .jinja file ({error})") from error


def _end_ids(path: Path, config: Any) -> tuple[int, ...]:
    settings = GenerationConfig.from_pretrained(path) if (path / "generation_config.json").exists() else config
    end = getattr(settings, "eos_token_id", None)
    return tuple(end) if isinstance(end, list) else () if end is None else (end,)


def choose_precision(requested: str, device: torch.device) -> str:
    """auto is bf16 where the hardware multiplies it at full speed, else fp32."""
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return "bf16" if any(getattr(torch.cpu, check, bool)() for check in checks) else "fp32"
