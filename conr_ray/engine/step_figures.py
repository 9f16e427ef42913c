"""Figures of the steps of an epoch, kept on the device until they are read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conr_ray.errors import RunFailed
from conr_ray.method.collectives import all_reduce_sum

# Steps between two reads of the loss: each one waits for the device.
LOOK_EVERY = 50


class StepFigures:
    """Losses and shares of the steps of an epoch.

    A loss is this worker's part; the parts sum to the global loss. A share is two numbers, (2,):
    part and whole, summed over steps and workers.
    """

    def __init__(self, epoch: int, last_checkpoint: str) -> None:
        self._epoch = epoch
        self._last_checkpoint = last_checkpoint
        self._losses: list[Tensor] = []
        self._shares: dict[str, list[Tensor]] = {}
        self._looked_at = 0
        self._global_losses: list[float] = []

    def add(self, loss: Tensor, shares: dict[str, Tensor]) -> None:
        """Keep the figures of a step; every `LOOK_EVERY` steps, `look`."""
        self._losses.append(loss.detach())
        for name, counts in shares.items():
            self._shares.setdefault(name, []).append(counts)
        if len(self._losses) - self._looked_at >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Sum the losses since the last look over the workers.

        Raises:
            RunFailed: one is not finite; raised on all workers, since all have the sum.
        """
        new = self._losses[self._looked_at :]
        if not new:
            return
        losses = all_reduce_sum(torch.stack(new)).tolist()
        for step, loss in enumerate(losses, start=self._looked_at):
            if not math.isfinite(loss):
                raise RunFailed(
                    f"the loss is {loss} at epoch {self._epoch}, step {step}; last good "
                    f"checkpoint: {self._last_checkpoint}; lower optim.lr or check the data"
                )
        self._global_losses += losses
        self._looked_at = len(self._losses)

    def means(self) -> dict[str, float]:
        """The epoch's mean loss and its shares; a share with whole 0 is left out."""
        self.look()
        means = {"loss": sum(self._global_losses) / len(self._global_losses)}
        for name, counts in self._shares.items():
            part, whole = all_reduce_sum(torch.stack(counts).sum(0)).tolist()
            if whole:
                means[name] = part / whole
        return means
