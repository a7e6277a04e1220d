"""Tiny random vision-language checkpoints of three families, and questions with images, made from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support import eval_checkpoints

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAMILIES = ("qwen2_vl", "llava", "idefics3")
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}  # fmt: skip


def save(folder: Path, family: str, seed: int = 0) -> Path:
    """A checkpoint folder as it is published: model, tokenizer, chat template, settings of the image processor."""
    build = {"qwen2_vl": _qwen2_vl, "llava": _llava, "idefics3": _idefics3}[family]
    words = eval_checkpoints.tokenizer()
    torch.manual_seed(seed)
    model, images, mark, settings = build(words)
    model.save_pretrained(folder)
    words.chat_template = TEMPLATE.replace("IMAGE", mark)
    words.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def questions(folder: Path) -> Path:
    """problems.json and images of different sizes; one row without an image, one of another split."""
    problems: dict[str, dict[str, Any]] = {}
    for k, size in enumerate([(40, 30), (64, 64), (100, 50)]):
        place = folder / "images" / str(k)
        place.mkdir(parents=True)
        Image.effect_noise(size, 90).convert("RGB").save(place / "image.png")
        problems[str(k)] = {
            "question": f"Which colour is number {k}?",
            "choices": ["red", "green", "blue"][: 2 + k % 2],
            "answer": k % 2,
            "hint": "Look at the dog." if k else "",
            "image": "image.png",
            "subject": "natural science",
            "topic": ["physics", "biology"][k % 2],
            "split": "test",
        }
    problems["3"] = problems["0"] | {"image": None}
    problems["4"] = problems["0"] | {"split": "train", "image": "never-downloaded.png"}
    path = folder / "problems.json"
    path.write_text(json.dumps(problems, indent=1))
    return path


def _special(words: Any, *tokens: str) -> list[int]:
    words.add_special_tokens({"additional_special_tokens": list(tokens)})
    return [int(k) for k in words.convert_tokens_to_ids(list(tokens))]


def _qwen2_vl(words: Any) -> tuple[Any, Any, str, dict[str, Any]]:
    start, end, image, video = _special(words, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 4,
            "hidden_size": 32,
            "patch_size": 14,
            "mlp_ratio": 2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    return Qwen2VLForConditionalGeneration(config), images, mark, {"processor_class": "Qwen2VLProcessor"}


def _llava(words: Any) -> tuple[Any, Any, str, dict[str, Any]]:
    (image,) = _special(words, "<image>")
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT, vocab_size=len(words)),
        vision_config=CLIPVisionConfig(**SIZES, image_size=28, patch_size=14),
        image_token_id=image,
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    settings = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return LlavaForConditionalGeneration(config), images, "<image>\n", settings


def _idefics3(words: Any) -> tuple[Any, Any, str, dict[str, Any]]:
    """The family of SmolVLM."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    _, image, *_ = _special(words, "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    config = Idefics3Config(
        text_config=LlamaConfig(**TEXT, vocab_size=len(words)),
        vision_config={**SIZES, "image_size": 28, "patch_size": 7},
        image_token_id=image,
        scale_factor=2,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    settings = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    return Idefics3ForConditionalGeneration(config), images, "<image>", settings
