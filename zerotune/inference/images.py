"""Images for a vision-language checkpoint: their placeholder tokens and their pixels.

The result is the same on every machine: images are resized by Pillow. transformers' AutoProcessor would also build a
video processor, which needs torchvision, and torchvision resizes differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from zerotune.common.errors import UserError

TEXT_INPUTS = ("input_ids", "attention_mask")
TYPES = "mm_token_type_ids"  # marks image tokens, for the families whose positions depend on it


class Images:
    """processor: the checkpoint's transformers processor, without video."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def ids(self, prompt: str, files: Sequence[str]) -> tuple[int, ...]:
        """The prompt's token ids; each image placeholder is expanded to the number of tokens of its image."""
        bos = self.processor.tokenizer.bos_token
        has_bos = bool(bos) and prompt.startswith(bos)  # some templates write it themselves
        try:
            inputs = self.processor(text=[prompt], images=_open(files), add_special_tokens=not has_bos)
        except ValueError as error:  # the text itself contains an image placeholder
            raise UserError(f"the prompt of {', '.join(files)} cannot be encoded: {error}") from error
        return tuple(int(token) for token in inputs["input_ids"][0])

    def inputs(self, ids: Sequence[int], files: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs: the tokens as one row, and the pixels in the format of the model family."""
        row = {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if not files:
            return row
        placeholders = self.processor.image_token * len(files)
        pixels = dict(self.processor(text=[placeholders], images=_open(files), return_tensors="pt"))
        if TYPES in pixels:
            pixels[TYPES] = torch.tensor(self.processor.create_mm_token_type_ids([list(ids)]))
        return row | {name: value for name, value in pixels.items() if name not in TEXT_INPUTS}


def load_images(folder: Path, config: Any, tokenizer: Any) -> Images:
    """Load the checkpoint's image processor. Raises UserError if it has none that can be used.

    config: the checkpoint's transformers configuration.
    """
    if type(config) not in PROCESSOR_MAPPING:
        raise UserError(f"{folder}: a {config.model_type} takes no images; the task needs a vision-language model")
    kind = PROCESSOR_MAPPING[type(config)]
    try:
        settings, _ = kind.get_processor_dict(folder, local_files_only=True)
        images = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
        parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
        return Images(_without_video(kind).from_args_and_dict([parts[p] for p in kind.get_attributes()], settings))
    except KeyError as error:
        raise UserError(f"{folder}: its processor needs {error}; only images and text can be evaluated") from error
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UserError(f"{folder}: its image processor cannot be used: {error}") from error


def _without_video(kind: Any) -> Any:
    """The processor class, accepting None as its video processor."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def _open(files: Sequence[str]) -> list[Image.Image] | None:
    opened = []
    for file in files:
        try:
            with Image.open(file) as image:
                opened.append(image.convert("RGB"))
        except Exception as error:  # Pillow raises any type for a damaged file
            reason = str(error) or type(error).__name__
            raise UserError(f"{file}: this image cannot be read: {reason}") from error
    return opened or None
