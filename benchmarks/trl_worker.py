"""One run of TRL's SFTTrainer with its defaults, in the peer's environment. Prints one JSON line at the end.

Set here, and nothing else: the model, the data, full or LoRA, the length limit, the learning rate and its constant
schedule, one epoch, the seed, the CPU, a log line each step (for its count of real tokens), and no saving on the way.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.time())


def conversation(row: dict) -> dict:
    question = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
    return {"prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": row["output"]}]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "rows", "out", "tuning"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--max_length", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    rows = [json.loads(line) for line in Path(given.rows).read_text(encoding="utf-8").splitlines()]
    clock = Clock()
    lora = LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=given.model,
        args=SFTConfig(
            output_dir=f"{given.out}-work", use_cpu=True, num_train_epochs=1, max_length=given.max_length,
            seed=given.seed, learning_rate=given.learning_rate, lr_scheduler_type="constant", logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([conversation(row) for row in rows]),
        peft_config=lora if given.tuning == "lora" else None,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    tokens = [
        int(entry["num_tokens"]) for entry in trainer.state.log_history if "num_tokens" in entry and "loss" in entry
    ]
    model = trainer.model.merge_and_unload() if given.tuning == "lora" else trainer.model
    model.save_pretrained(given.out)
    trainer.processing_class.save_pretrained(given.out)
    described = f"weights {model.dtype}, bf16 {trainer.args.bf16}, batch {trainer.args.per_device_train_batch_size}"
    print(json.dumps({"times": clock.ends, "tokens": tokens, "threads": torch.get_num_threads(), "set": described}))


if __name__ == "__main__":
    main()
