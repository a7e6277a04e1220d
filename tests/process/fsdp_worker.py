"""Started by test_fsdp.py on two gloo ranks: one step of a model that torch's own `fully_shard` spreads, against
the same on one rank.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Qwen2Config, Qwen2ForCausalLM

from train.models import attention, loss_head

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
DOCUMENTS = [[11, 5], [7, 13]]  # lengths of the documents in each rank's pack


def pack(lengths, seed):
    """Inputs and targets of one packed micro-batch."""
    ids_bt = torch.randint(0, 96, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    targets_bt = ids_bt.roll(-1, 1)
    targets_bt[0, ends[1:].long() - 1] = -100
    inputs = {
        "input_ids": ids_bt,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": max(lengths), "max_length_k": max(lengths), "use_cache": False,
    }  # fmt: skip
    return inputs, targets_bt


def main(tied: bool) -> None:
    torch.manual_seed(0)
    attention.register()
    config = Qwen2Config(**SIZES, tie_word_embeddings=tied)
    whole = Qwen2ForCausalLM._from_config(
        config, attn_implementation=attention.implementation("auto", True, torch.device("cpu"))
    )
    loss_head.install(whole)
    spread = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in spread.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(spread, mesh=mesh)

    packs = [pack(lengths, seed) for seed, lengths in enumerate(DOCUMENTS)]
    count = sum(int((targets != -100).sum()) for _, targets in packs)
    loss = sum(loss_head.token_loss(whole, *one) for one in packs) / count
    loss.backward()
    mine = loss_head.token_loss(spread, *packs[dist.get_rank()])
    (mine * dist.get_world_size() / count).backward()

    joined = mine.detach().clone()
    dist.all_reduce(joined)
    torch.testing.assert_close(joined / count, loss.detach(), rtol=1e-5, atol=1e-6)
    for (name, plain), (_, sharded) in zip(whole.named_parameters(), spread.named_parameters(), strict=True):
        torch.testing.assert_close(
            sharded.grad.full_tensor(), plain.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    if dist.get_rank() == 0:
        print(f"equal tied={tied}", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for tied in (True, False):
        main(tied)
    dist.destroy_process_group()
