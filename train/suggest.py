"""The nearest known name to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# What other trainers call it; for people who come from there.
ELSEWHERE = {
    "bf16": "run.precision",
    "cutoff_len": "data.max_length_tokens",
    "dataset": "data.train",
    "eval_steps": "validation.every_steps",
    "finetuning_type": "tuning.kind",
    "fp16": "run.precision",
    "gradient_accumulation_steps": "batch.tokens_per_step",
    "logging_steps": "watch.every_steps",
    "lora_alpha": "tuning.lora.alpha",
    "lora_dropout": "tuning.lora.dropout",
    "lora_r": "tuning.lora.rank",
    "lora_rank": "tuning.lora.rank",
    "lora_target": "tuning.lora.targets",
    "lr": "optim.learning_rate",
    "lr_scheduler_type": "optim.schedule",
    "max_grad_norm": "optim.clip_norm",
    "max_seq_length": "data.max_length_tokens",
    "model_name_or_path": "model.path",
    "num_train_epochs": "duration.max_epochs",
    "output_dir": "run.folder",
    "packing": "batch.layout",
    "per_device_train_batch_size": "batch.tokens_per_micro_batch",
    "quantization_bit": "tuning.quantization",
    "r": "tuning.lora.rank",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "target_modules": "tuning.lora.targets",
    "template": "data.chat_template",
    "val_size": "data.validation_fraction",
    "warmup_ratio": "optim.warmup_fraction",
}


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing if no known name is near. Names are dotted keys or files."""
    lasts = {key: key.rpartition(".")[2] for key in known}
    last = name.removeprefix("--").rpartition(".")[2]
    elsewhere = [key for key in known if key.removeprefix("--") == ELSEWHERE.get(last)]
    same_last = [key for key in known if lasts[key] == last]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near_last = difflib.get_close_matches(last, list(lasts.values()), n=1, cutoff=0.75)
    by_last = [key for key in known if lasts[key] in near_last]
    choice = (same_last if len(same_last) == 1 else []) or elsewhere or near or by_last
    return f"; did you mean {choice[0]}?" if choice else ""
