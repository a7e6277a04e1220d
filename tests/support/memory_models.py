"""Tiny models and cases for the tests of `train.plan`: sizes that no number of ranks divides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

from train.config import LoraConfig, PromptConfig, TuningConfig

ROW = 12  # tokens
SIZES: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 36, "intermediate_size": 74, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, head_dim=12, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, head_dim=12, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=12, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=131, n_embd=36, n_layer=3, n_head=3, n_positions=64, attn_pdrop=0.0),
}
BUCKET = 50_000  # elements; the default of 5e8 would set gigabytes aside


@dataclass(frozen=True)
class Case:
    """As `zero-2 llama lora adamw bf16`."""

    kind: str
    family: str
    tuning: str
    optimizer: str
    precision: str

    @property
    def stage(self) -> int:
        return int(self.kind[5]) if self.kind.startswith("zero") else 0

    @property
    def tuning_config(self) -> TuningConfig:
        saved = ["embed_tokens"] if self.tuning == "lora+embeddings" else []
        return TuningConfig(
            self.tuning.partition("+")[0],
            lora=LoraConfig(rank=4, modules_to_save=saved),
            prompt=PromptConfig(virtual_tokens=3),
        )

    @property
    def load_dtype(self) -> torch.dtype:
        return torch.float32 if self.tuning == "full" or self.precision == "fp32" else torch.bfloat16


def deepspeed_config(case: Case) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": case.stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 100,
        },
    }
