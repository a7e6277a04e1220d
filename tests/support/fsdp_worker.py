"""Started by test_fsdp.py on two gloo ranks: one step of a model that torch's own `fully_shard` spreads, against
the same on one rank.
"""

from __future__ import annotations

import contextlib
import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from tests.support.training_runs import TINY
from train.config import LoraConfig, TuningConfig
from train.config_ppo import PpoConfig
from train.engine.gather_weights import unsharded
from train.engine.runtime import sharded_precision
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.rollout import generation_requests, sample_responses
from train.tuning import make_tuning
from zerotune.models import attention, loss_head

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TOKENIZER = AutoTokenizer.from_pretrained(TINY)  # a rollout reads its answers
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


def build(tied: bool) -> nn.Module:
    torch.manual_seed(0)
    attention.register()
    config = Qwen2Config(**SIZES, tie_word_embeddings=tied)
    whole = Qwen2ForCausalLM._from_config(
        config, attn_implementation=attention.implementation("auto", True, torch.device("cpu"))
    )
    loss_head.install(whole)
    return whole


def spread_out(model: nn.Module, policy: MixedPrecisionPolicy, root: nn.Module | None = None) -> nn.Module:
    """Units as Accelerate makes them: each layer, and head, norm and (where tied) embeddings together."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    tail = [model.model.norm, model.lm_head]
    if model.lm_head.weight is model.model.embed_tokens.weight:
        tail = [model.model.norm, model.model.embed_tokens, model.lm_head]
    fully_shard(tail, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return fully_shard(root or model, mesh=mesh, mp_policy=policy)


def in_float32(tied: bool) -> None:
    whole = build(tied)
    spread = spread_out(copy.deepcopy(whole), MixedPrecisionPolicy())
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


def in_bf16(tied: bool) -> None:
    """Weights of float32 multiplied in bf16: the loss is a float32 sum, and so are the gradients that cross ranks."""
    exact, spread = build(tied), spread_out(build(tied), sharded_precision(torch.bfloat16))
    packs = [pack(lengths, seed) for seed, lengths in enumerate(DOCUMENTS)]
    loss = sum(loss_head.token_loss(exact, *one) for one in packs)
    loss.backward()
    for last in (False, True):  # the first backward only accumulates, as in a step of two micro-batches
        spread.set_requires_gradient_sync(last)
        mine = loss_head.token_loss(spread, *packs[dist.get_rank()])
        (mine * dist.get_world_size() / 2).backward()
    assert mine.dtype == torch.float32, mine.dtype
    assert mine != mine.bfloat16(), "rounded on the way"
    joined = mine.detach().clone()
    dist.all_reduce(joined)
    torch.testing.assert_close(joined, loss.detach(), rtol=2e-3, atol=0)
    wanted = torch.cat([p.grad.flatten() for p in exact.parameters()])
    found = torch.cat([p.grad.full_tensor().flatten() for p in spread.parameters()])
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 2e-2 * wanted.norm()
    seen = found[found != 0]  # tokens that do not occur have none
    assert (seen == seen.bfloat16()).float().mean() < 0.5, "gradients crossed ranks in bf16"
    if dist.get_rank() == 0:
        print(f"float32 sums tied={tied}", flush=True)


class Alike:
    """What a rollout asks of ranks, each of which answers all prompts here."""

    index, count, device = 0, 1, torch.device("cpu")

    def sum(self, values):
        return list(values)

    def whole(self, model):
        return gathered_whole(model)


@contextlib.contextmanager
def gathered_whole(model):
    with unsharded(model):
        yield model


def answers(model, ranks):
    """Sampled answers, some prompts beginning alike."""
    prompts = [Prompt(tuple(range(5, 9 + k % 3)), "r") for k in range(6)]
    asked = generation_requests(prompts, PpoConfig(response_tokens=6), (3,), (0, 1), greedy=False)
    return [trajectory.response for trajectory in sample_responses(model, TOKENIZER, asked, prompts, ranks)]


def generating(tied: bool, adapted: bool) -> None:
    """Before the first forward pass and between steps a rollout draws what it draws from the model on one rank; the
    weights are in shards again afterwards, and the next gradients are as if there had been none."""

    def made():
        whole = build(tied)
        return make_tuning(TuningConfig("lora", lora=LoraConfig(rank=4))).apply(whole) if adapted else whole

    plain, spread = made(), made()
    spread_out(spread.get_base_model() if adapted else spread, MixedPrecisionPolicy(), root=spread)
    solo = Alike()
    solo.whole = contextlib.nullcontext
    drawn = []
    for seed in (0, 5):
        drawn.append(answers(plain, solo))
        assert answers(spread, Alike()) == drawn[-1]
        assert all(isinstance(p, DTensor) for p in spread.parameters())
        one = pack(DOCUMENTS[0], seed)  # the same on both ranks: their mean is the one rank's
        for model in (plain, spread):
            loss_head.token_loss(model, *one).backward()
        for (name, whole), (_, sharded) in zip(plain.named_parameters(), spread.named_parameters(), strict=True):
            if whole.requires_grad:
                torch.testing.assert_close(
                    sharded.grad.full_tensor(), whole.grad, rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
                )
        with torch.no_grad():  # a step large enough to draw otherwise next time
            for model in (plain, spread):
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.05)
                        parameter.grad = None
    assert drawn[0] != drawn[1]
    if dist.get_rank() == 0:
        print(f"generates tied={tied} adapted={adapted}", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for tied in (True, False):
        in_float32(tied)
        in_bf16(tied)
    for tied, adapted in ((True, False), (False, True)):
        generating(tied, adapted)
    dist.destroy_process_group()
