"""The collective operations that the method needs.

Without a process group, every function acts as on a single worker: the same code runs in one
process and in many. A *global* range of n rows is split into contiguous shares, in rank order,
whose sizes differ by at most one row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conr_ray.method.phases import phase


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(num_rows: int, worker: int | None = None) -> slice:
    """The rows of a global range of `num_rows` that belong to a worker, by default this one."""
    worker, workers = rank() if worker is None else worker, world_size()
    return slice(worker * num_rows // workers, (worker + 1) * num_rows // workers)


def all_reduce_sum(local: Tensor) -> Tensor:
    """Element-wise sum of `local` over the workers, as a new tensor."""
    total = local.clone()
    if world_size() > 1:
        with phase("communication"):
            dist.all_reduce(total)
    return total


def broadcast_first(local: Tensor) -> Tensor:
    """The first worker's tensor on every worker, as a new tensor of `local`'s shape."""
    same = local.clone()
    if world_size() > 1:
        with phase("communication"):
            dist.broadcast(same, src=0)
    return same


def all_gather_rows(local: Tensor, num_rows: int) -> Tensor:
    """Shares (`local`, first dimension) of all workers, joined to `num_rows` rows. No gradient."""
    workers = world_size()
    if workers == 1:
        return local.detach()
    sizes = [share(num_rows, worker) for worker in range(workers)]
    counts = [part.stop - part.start for part in sizes]
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local.detach()
    parts = [torch.empty_like(padded) for _ in range(workers)]
    with phase("communication"):
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_gather_stack(local: Tensor) -> Tensor:
    """Tensors of the same shape on all workers, stacked in rank order."""
    if world_size() == 1:
        return local[None]
    parts = [torch.empty_like(local) for _ in range(world_size())]
    with phase("communication"):
        dist.all_gather(parts, local.contiguous())
    return torch.stack(parts)


def all_gather_varying(local: Tensor) -> Tensor:
    """Rows (first dimension) of all workers, joined; their numbers may differ."""
    if world_size() == 1:
        return local
    counts = all_gather_stack(torch.tensor([len(local)], device=local.device)).flatten().tolist()
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local
    parts = all_gather_stack(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def evenly_spaced(local: Tensor, num_rows: int, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` of `num_rows` rows, of which each worker has its share.

    Returns their numbers (m,) and themselves, (m, ...); the same on all workers.
    """
    count, own = min(num_rows, most), share(num_rows)
    rows_m = torch.arange(count, device=local.device) * num_rows // count
    own_m = rows_m[(rows_m >= own.start) & (rows_m < own.stop)] - own.start
    return rows_m, all_gather_varying(local[own_m])


class _DifferentiableSum(torch.autograd.Function):
    """A sum over the workers whose gradient is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return all_reduce_sum(local)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0])


def differentiable_sum(local: Tensor) -> Tensor:
    """Element-wise sum of `local` over the workers, through which gradients flow.

    Every worker's loss may depend on the sum; the gradient is that of the sum of their losses.
    """
    summed: Tensor = _DifferentiableSum.apply(local)
    return summed
