"""One run of TRL's experimental PPOTrainer, in the peer's environment. Prints one JSON line at the end.

Set here, and nothing else: the models, the prompts, LoRA, the precision, the CPU, the batch (all prompts of a rollout
in one micro-batch and one optimizer step, as on our side), the length of responses and where they end,
temperature 1, the learning rate and its constant schedule, the seed, and no saving. The reference is the policy with
its adapter switched off, TRL's default under LoRA. PPOTrainer demands a separate value model; as in TRL's own script it
is a second copy of the reward model, and all its weights are trained.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

PADDING = "<|endoftext|>"  # SmolLM2's own padding is its end of turn, which PPOTrainer would take for nothing


class Clock(TrainerCallback):
    """When each rollout with its updates ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.time())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "reward", "rows", "out", "precision"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("prompt_tokens", "response_tokens", "batch", "epochs", "rank", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("learning_rate", "kl_weight"):
        parser.add_argument(f"--{name}", type=float, required=True)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left", pad_token=PADDING)
    rows = [json.loads(line)["text"] for line in Path(given.rows).read_text(encoding="utf-8").splitlines()]
    prompts = [tokenizer(text)["input_ids"][: given.prompt_tokens] for text in rows]
    half = given.precision == "bf16"
    frozen = torch.bfloat16 if half else torch.float32  # trained weights stay in float32, under bf16 autocast
    clock = Clock()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=given.out, use_cpu=True, bf16=half, seed=given.seed, total_episodes=len(prompts),
            per_device_train_batch_size=given.batch, num_ppo_epochs=given.epochs, kl_coef=given.kl_weight,
            response_length=given.response_tokens, stop_token="eos", temperature=1.0,
            learning_rate=given.learning_rate, lr_scheduler_type="constant", logging_steps=1,
            num_sample_generations=0, save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=frozen),
        ref_model=None,
        reward_model=AutoModelForSequenceClassification.from_pretrained(given.reward, dtype=frozen),
        value_model=AutoModelForSequenceClassification.from_pretrained(given.reward, dtype=torch.float32),
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in prompts]),
        peft_config=LoraConfig(
            r=given.rank, lora_alpha=2 * given.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    print(
        json.dumps(
            {
                "times": clock.ends,
                "rewards": [entry["objective/scores"] for entry in logs],
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
