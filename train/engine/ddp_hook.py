"""Averages gradients over ranks in an order that does not change when a run resumes.

DDP arranges gradients in buckets in one way in the first step of a process, and in another way later. With more than
two ranks, the order of additions depends on an element's position in its bucket, so the first step after a resume
would differ in its last bits.
"""

import torch
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel


def average_each_parameter(model: nn.Module) -> None:
    """Make DDP reduce each parameter separately: the position of an element is then always the same.

    For gloo: many small messages take little time compared with a step on a CPU.
    """
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, _average)


# torch checks the annotations: without `from __future__ import annotations`, which would make them strings.
def _average(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    pending = [distributed.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    for work in pending:
        work.wait()
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer().div_(distributed.get_world_size()))
    return averaged
