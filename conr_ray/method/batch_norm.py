"""Batch normalisation over the global batch or over groups of its rows, on CPU and GPU.

Gradients are independent of the number of workers only if batch statistics are too. torch's
SyncBatchNorm rejects CPU tensors, so CPU workers get the same operation over gloo here.

Shapes: b rows of this worker, c channels, g groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from conr_ray.method.collectives import all_gather_stack, rank, world_size

NormT = TypeVar("NormT", bound="_Replacement")


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch statistics taken over all workers; parameters are kept."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return _replaced(module, _synchronized)
    return _replaced(module, _GlobalBatchNorm.of)


def divide_batch_norm(module: nn.Module, rows: int) -> nn.Module:
    """`module` with batch statistics taken over `rows` rows at a time; parameters are kept.

    Ghost batch normalisation (Hoffer et al. 2017), the same on any number of workers if the share
    of each is a multiple of `rows`; see `average_running_statistics`.
    """

    def divided(norm: _BatchNorm) -> _GhostBatchNorm:
        ghost = _GhostBatchNorm.of(norm)
        ghost.rows = rows
        return ghost

    return _replaced(module, divided)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Make running statistics those of all workers' groups; called by all workers.

    Each worker follows its own groups. A moving average is linear, so the mean of the workers' is
    the moving average of their mean, whether it is taken after each step or, as here, at times.
    """
    if (gathered := gathered_running_statistics(module)) is not None:
        _set_statistics(module, gathered.mean(0))


def gathered_running_statistics(module: nn.Module) -> Tensor | None:
    """Each worker's own running statistics, a row for each; None where all have the same."""
    statistics = _own_statistics(module)
    if world_size() == 1 or not statistics:
        return None
    return all_gather_stack(torch.cat(statistics))


def set_running_statistics(module: nn.Module, gathered: Tensor | None) -> None:
    """Undo `gathered_running_statistics`; on another number of workers, all get the mean."""
    if gathered is not None:
        same = len(gathered) == world_size()
        _set_statistics(module, gathered[rank()] if same else gathered.mean(0))


def _own_statistics(module: nn.Module) -> list[Tensor]:
    """Running statistics that follow a worker's own rows."""
    norms = [norm for norm in module.modules() if isinstance(norm, _GhostBatchNorm)]
    return [cast(Tensor, s) for n in norms for s in (n.running_mean, n.running_var)]


def _set_statistics(module: nn.Module, joined: Tensor) -> None:
    statistics = _own_statistics(module)
    torch._foreach_copy_(statistics, torch.split(joined, [len(s) for s in statistics]))


def _replaced(module: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """`module` with a replacement for each batch normalisation."""
    if isinstance(module, _BatchNorm):
        return replacement(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, replacement))
    return module


def _synchronized(norm: _BatchNorm) -> nn.Module:
    """Torch's own for GPUs, followed by what `norm` does besides."""
    plain = cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]
    if not any(True for _ in norm.children()):
        return plain
    followed = _FollowedSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    # Parameters, buffers and the modules inside.
    followed.__dict__.update(plain.__dict__)
    return followed


def _after(norm: nn.Module, normalized: Tensor) -> Tensor:
    for child in norm.children():
        normalized = child(normalized)
    return normalized


class _FollowedSyncBatchNorm(nn.SyncBatchNorm):
    """torch's, with modules that are applied to its outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, ...) local rows."""
        return _after(self, super().forward(input))


class _Replacement(_BatchNorm):
    """Batch normalisation of (b, c, ...) that takes the place of one of torch's.

    Those of timm have modules of their own, dropout and activation, which come after it.
    """

    @classmethod
    def of(cls: type[NormT], norm: _BatchNorm) -> NormT:
        """A copy of `norm` that shares its parameters and buffers, and the modules inside."""
        copy = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        copy.weight, copy.bias = norm.weight, norm.bias
        copy.running_mean, copy.running_var = norm.running_mean, norm.running_var
        copy.num_batches_tracked = norm.num_batches_tracked
        copy.training = norm.training
        for name, child in norm.named_children():
            copy.add_module(name, child)
        return copy

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, ...) local rows."""
        normalized = self._normalized(input) if self.training else super().forward(input)
        return _after(self, normalized)

    def _normalized(self, input: Tensor) -> Tensor:
        """In training."""
        raise NotImplementedError

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation needs 2 dimensions or more, got {input.dim()}")

    @torch.no_grad()
    def _follow(self, mean_c: Tensor, var_c: Tensor) -> None:
        """Move the running statistics toward those of a step."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_c, self.momentum)
        self.running_var.lerp_(var_c, self.momentum)


class _GhostBatchNorm(_Replacement):
    """Batch normalisation whose training statistics are those of `rows` rows at a time."""

    rows: int

    def _normalized(self, input: Tensor) -> Tensor:
        """(b, c, ...), b a multiple of `rows`; running statistics follow the mean over groups."""
        self._check_input_dim(input)
        assert self.running_mean is not None and len(input) % self.rows == 0
        parts = torch.split(input, self.rows)
        means_gc, vars_gc = self.running_mean.new_zeros(2, len(parts), self.num_features)
        # With momentum 1 the buffers become the group's mean and unbiased variance.
        normalized = [
            batch_norm(part, mean_c, var_c, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean_c, var_c in zip(parts, means_gc, vars_gc, strict=True)
        ]
        self._follow(means_gc.mean(0), vars_gc.mean(0))
        return torch.cat(normalized)


class _GlobalBatchNorm(_Replacement):
    """Batch normalisation whose training statistics are those of all workers' rows together."""

    def _normalized(self, input: Tensor) -> Tensor:
        """(b, c, ...) local rows, normalised by the global batch's mean and variance."""
        self._check_input_dim(input)
        assert self.running_mean is not None
        # Under autocast the input is bfloat16; sums and statistics are not, as in torch's own.
        wide = input.to(self.running_mean.dtype)
        normalized, mean, var, count = _Normalize.apply(wide, self.eps)
        self._follow(mean, var * count / (count - 1))
        shape = [1, -1] + [1] * (input.dim() - 2)
        scaled = normalized
        if self.affine:
            scaled = normalized * self.weight.view(shape) + self.bias.view(shape)
        return cast(Tensor, scaled.to(input.dtype))


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with mean and variance of all workers' rows.

    One exchange each way. Shapes: c channels, w workers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        local_count, local_mean = x.numel() // x.shape[1], x.mean(dims)
        centred = x - local_mean.view(shape)
        # Squares around each worker's own mean, joined afterwards: E[x^2] - E[x]^2 would lose
        # digits where mean >> deviation, and squares around the global mean need a second exchange.
        local = torch.cat([local_mean, centred.square().sum(dims), x.new_tensor([local_count])])
        parts = torch.split(all_gather_stack(local), [x.shape[1], x.shape[1], 1], dim=1)
        means_wc, squares_wc, counts_w1 = parts
        count = counts_w1.sum()
        mean = (means_wc * counts_w1).sum(0) / count
        between_wc = counts_w1 * (means_wc - mean).square()
        var = (squares_wc + between_wc).sum(0) / count
        inverse = (var + eps).rsqrt()
        shift = (local_mean - mean) * inverse
        normalized = torch.addcmul(shift.view(shape), centred, inverse.view(shape))
        ctx.save_for_backward(normalized, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return normalized, mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        normalized, inverse, count = ctx.saved_tensors
        grad = grads[0]
        dims = [0, *range(2, grad.dim())]
        shape = [1, -1] + [1] * (grad.dim() - 2)
        local = torch.stack([grad.sum(dims), (grad * normalized).sum(dims)])
        # Gather and sum: half the steps of an all-reduce, and message size does not matter here.
        grad_sum, grad_dot = (all_gather_stack(local).sum(0) / count).unbind()
        return (grad - grad_sum.view(shape) - normalized * grad_dot.view(shape)) * inverse.view(
            shape
        ), None
