"""The loss inside the output layer under ZeRO-3: weights are gathered for it, and the gradient is one process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import copy, sys
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import InitProcessGroupKwargs
from deepspeed.utils import safe_get_full_grad
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from zerotune.models import loss_head

torch.set_num_threads(1)
plugin = DeepSpeedPlugin(hf_ds_config={
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False})
accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
assert accelerator.num_processes == 2, accelerator.num_processes
rank = accelerator.process_index

config = LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, tie_word_embeddings=sys.argv[1] == "tied")
torch.manual_seed(0)
with torch.device("cpu"):
    model = LlamaForCausalLM(config)
if sys.argv[1] == "head-lora":
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"],
                                             init_lora_weights=False))
reference = copy.deepcopy(model)
ids_bt = torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(1))
targets_bt = ids_bt.roll(-1, 1)
targets_bt[:, -1] = -100
targets_bt[0, :5] = -100  # ranks learn from different numbers of tokens

logits_btv = reference(input_ids=ids_bt, use_cache=False).logits
loss = torch.nn.functional.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), reduction="sum")
loss.backward()

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
model, optimizer = accelerator.prepare(model, optimizer)
mine = slice(2 * rank, 2 * rank + 2)
for repeat in range(2):  # twice, as the first pass records ZeRO-3's order of modules
    part = loss_head.token_loss(model, {"input_ids": ids_bt[mine], "use_cache": False}, targets_bt[mine])
    model.backward(part * 2)  # DeepSpeed averages over ranks
    total = accelerator.reduce(part.detach(), "sum")
    torch.testing.assert_close(total, loss.detach(), rtol=1e-5, atol=1e-5)
    wanted = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    for name, p in model.module.named_parameters():
        if p.requires_grad:
            assert p.ds_numel > p.ds_tensor.numel(), f"{name} is not sharded"
            grad = safe_get_full_grad(p)
            torch.testing.assert_close(grad, wanted.pop(name), rtol=1e-5, atol=1e-5, msg=f"{name} in pass {repeat}")
    assert not wanted, wanted
    model.step()  # with a learning rate of 0
print("equal on rank", rank, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied", "head-lora"])
def test_zero3_gradient_equals_one_process(kind, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    environment.pop("ACCELERATE_USE_CPU", None)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        kind,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("equal on rank") == 2
