"""Gradients averaged over ranks so that a resumed run adds in the same order as the one that was never stopped.

DDP lays gradients out in buckets, one way in the first step of a process and another way in all later ones. More than
two ranks add an element in an order that depends on its place in what is reduced, so that the step after a resumption
would differ in its last bits.
"""

import torch
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel


def average_parameters_alone(model: nn.Module) -> None:
    """Let DDP reduce each parameter by itself, where the place of an element is always the same.

    For gloo: many small messages cost little beside a CPU's step.
    """
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, _average)


# torch compares the annotations, so that they may not become text here.
def _average(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    under_way = [distributed.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    for work in under_way:
        work.wait()
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer().div_(distributed.get_world_size()))
    return averaged
