"""Images as a vision-language checkpoint sees them: what stands for them among the token ids, and their pixels.

One way on every machine: images only and Pillow's resizing. transformers' AutoProcessor also wants to build a video
half, which needs torchvision, and with torchvision it resizes by other code.
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
TYPES = "mm_token_type_ids"  # which tokens stand for images, for the families whose positions depend on it


class Images:
    """processor: transformers' own of the checkpoint, without video."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def ids(self, prompt: str, files: Sequence[str]) -> tuple[int, ...]:
        """The prompt's tokens, where each image's mark has become as many tokens as the image takes."""
        start = self.processor.tokenizer.bos_token
        marked = bool(start) and prompt.startswith(start)  # a template writes its own start token, or leaves it out
        try:
            inputs = self.processor(text=[prompt], images=_opened(files), add_special_tokens=not marked)
        except ValueError as error:  # the question itself holds an image's mark
            raise UserError(f"the prompt of {', '.join(files)} cannot be encoded: {error}") from error
        return tuple(int(token) for token in inputs["input_ids"][0])

    def inputs(self, ids: Sequence[int], files: Sequence[str]) -> dict[str, Tensor]:
        """What the model takes: the tokens as one row, and the images' pixels in its family's form."""
        row = {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if not files:
            return row
        marks = self.processor.image_token * len(files)
        pixels = dict(self.processor(text=[marks], images=_opened(files), return_tensors="pt"))
        if TYPES in pixels:
            pixels[TYPES] = torch.tensor(self.processor.create_mm_token_type_ids([list(ids)]))
        return row | {name: value for name, value in pixels.items() if name not in TEXT_INPUTS}


def load_images(folder: Path, config: Any, tokenizer: Any) -> Images:
    """The checkpoint's own image handling. Raises UserError where it has none that can be used.

    config: transformers' own of the checkpoint.
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
    """The processor's class, content with no video half."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def _opened(files: Sequence[str]) -> list[Image.Image] | None:
    opened = []
    for file in files:
        try:
            with Image.open(file) as image:
                opened.append(image.convert("RGB"))
        except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
            reason = str(error) or type(error).__name__
            raise UserError(f"{file}: this image cannot be read: {reason}") from error
    return opened or None
