"""Figures of the steps of an epoch, kept on the device until somebody looks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conr_ray.errors import RunFailed
from conr_ray.method.collectives import all_reduce_sum, world_size

# Steps between two looks at the loss: each look waits for the device.
LOOK_EVERY = 50


class StepFigures:
    """Loss (parts that sum to the global one) and other figures (averaged over the workers)."""

    def __init__(self, epoch: int, last_checkpoint: str) -> None:
        self._epoch = epoch
        self._last_checkpoint = last_checkpoint
        self._losses: list[Tensor] = []
        self._others: dict[str, list[Tensor]] = {}
        self._looked_at = 0
        self._global_losses: list[float] = []

    def add(self, loss: Tensor, figures: dict[str, Tensor]) -> None:
        """Keep the figures of a step; every `LOOK_EVERY` steps, `look`."""
        self._losses.append(loss.detach())
        for name, value in figures.items():
            self._others.setdefault(name, []).append(value.detach())
        if len(self._losses) - self._looked_at >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Exchange the losses since the last look.

        Raises:
            RunFailed: one is not finite; on all workers at once, since the sum is everyone's.
        """
        new = self._losses[self._looked_at :]
        if not new:
            return
        losses = all_reduce_sum(torch.stack(new)).tolist()
        for step, loss in enumerate(losses, start=self._looked_at):
            if not math.isfinite(loss):
                raise RunFailed(
                    f"the loss is {loss} at epoch {self._epoch}, step {step}; last good "
                    f"checkpoint: {self._last_checkpoint}; lower optim.lr or look at the images"
                )
        self._global_losses += losses
        self._looked_at = len(self._losses)

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps and the workers."""
        self.look()
        means = {"loss": sum(self._global_losses) / len(self._global_losses)}
        for name, values in self._others.items():
            mean = all_reduce_sum(torch.stack(values).double().nanmean()) / world_size()
            means[name] = float(mean)
        return means
