"""Mean -log p over the answers of held-out rows in float32; the same judge for both sides. Prints one number.

python benchmarks/held_out_loss.py MODEL ROWS.jsonl MAX_LENGTH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_worker import conversation


@torch.no_grad()
def main(folder: str, rows: str, max_length: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in Path(rows).read_text(encoding="utf-8").splitlines():
        talk = conversation(json.loads(line))
        prompt = tokenizer.apply_chat_template(talk["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(talk["prompt"] + talk["completion"], return_dict=False)[: int(max_length)]
        logits_tv = model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits_tv, torch.tensor(ids[len(prompt) :]), reduction="sum"))
        count += len(ids) - len(prompt)
    print(total / count)


if __name__ == "__main__":
    main(*sys.argv[1:])
