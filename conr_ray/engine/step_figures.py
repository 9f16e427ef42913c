"""Figures of the steps of an epoch, kept on the device until they are read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from conr_ray.engine.stopping import stop_request
from conr_ray.errors import RunFailed
from conr_ray.method.collectives import all_gather_stack, rank

# A look at the figures waits for the device and for the other workers. It comes after so many
# steps at most, and after so many seconds: within them a run that is to stop does so.
_MOST_STEPS, _PAUSE_S = 50, 2.0


class Pace:
    """How many steps are made from one look to the next; the same on all workers.

    Attributes:
        steps: between two looks.
        wished: by this worker, from the steps that it has timed.
    """

    steps = 1
    wished = 1

    def time(self, num_steps: int, seconds: float) -> None:
        """Note how long steps took."""
        self.wished = max(1, min(_MOST_STEPS, int(_PAUSE_S * num_steps / seconds)))


class StepFigures:
    """Losses and shares of the steps of an epoch.

    A loss is this worker's part; the parts sum to the global loss. A share is two numbers, (2,):
    part and whole, summed over steps and workers.

    Attributes:
        latest: figures of the last step.
        last_checkpoint: where the newest checkpoint is, for messages.
        save_agreed: whether the first worker wanted a checkpoint at the last look.
    """

    def __init__(
        self,
        epoch: int,
        num_steps: int,
        pace: Pace,
        last_checkpoint: str,
        so_far: Mapping[str, Any] | None = None,
    ) -> None:
        """Figures of an epoch of `num_steps`; `so_far` is a `state_dict` of its first steps."""
        before = so_far or {"losses": [], "shares": {}, "latest": {}, "seconds": 0.0}
        seconds: float = before["seconds"]
        self._epoch, self._num_steps, self._pace = epoch, num_steps, pace
        self.last_checkpoint, self.save_agreed = last_checkpoint, False
        self._losses: list[float] = list(before["losses"])
        self._shares = {name: list(counts) for name, counts in before["shares"].items()}
        self.latest: dict[str, float] = dict(before["latest"])
        self._looked = time.perf_counter()
        self._started = self._looked - seconds
        self._new_losses: list[Tensor] = []
        self._new_shares: dict[str, list[Tensor]] = {}

    @property
    def num_steps(self) -> int:
        """Steps of the epoch so far."""
        return len(self._losses) + len(self._new_losses)

    @property
    def seconds(self) -> float:
        """Time spent on the epoch so far."""
        return time.perf_counter() - self._started

    def add(self, loss: Tensor, shares: Mapping[str, Tensor], latest: Mapping[str, float]) -> None:
        """Keep the figures of a step."""
        self._new_losses.append(loss.detach())
        for name, counts in shares.items():
            self._new_shares.setdefault(name, []).append(counts)
        self.latest = dict(latest)

    @property
    def due(self) -> bool:
        """Whether it is time to `look`: now and then, and after the last step."""
        return len(self._new_losses) >= self._pace.steps or self.num_steps == self._num_steps

    def look(self, *, wants_save: bool = False) -> bool:
        """Sum what is new over the workers; return whether any of them is asked to stop.

        Args:
            wants_save: whether this worker wants a checkpoint; that of the first one is heeded.

        Raises:
            RunFailed: a loss is not finite; raised on all workers, since all have the sum.
        """
        num_new = len(self._new_losses)
        parts = [torch.stack(self._new_losses).double()]
        parts += [torch.stack(counts).sum(0).double() for counts in self._new_shares.values()]
        wishes = [0.0, 0.0] if rank() else [float(wants_save), float(self._pace.wished)]
        parts.append(parts[0].new_tensor([float(stop_request.asked), *wishes]))
        # Added in the order of ranks: a sum does not depend on what else is sent with it.
        by_worker = all_gather_stack(torch.cat(parts)).unbind()
        sums: list[float] = reduce(torch.add, by_worker).tolist()
        losses = sums[:num_new]
        for step, loss in enumerate(losses, start=len(self._losses)):
            if not math.isfinite(loss):
                raise RunFailed(
                    f"the loss is {loss} at epoch {self._epoch}, step {step}; last good "
                    f"checkpoint: {self.last_checkpoint}; lower optim.lr or check the data"
                )
        self._losses += losses
        for place, name in enumerate(self._new_shares):
            counts = self._shares.setdefault(name, [0.0, 0.0])
            for i in range(2):
                counts[i] += sums[num_new + 2 * place + i]
        self._new_losses, self._new_shares = [], {}
        asked, self.save_agreed, self._pace.steps = sums[-3], sums[-2] > 0, int(sums[-1])
        now = time.perf_counter()
        self._pace.time(num_new, now - self._looked)
        self._looked = now
        return asked > 0

    def means(self) -> dict[str, float]:
        """The mean loss of the steps looked at, and their shares; one with whole 0 is left out."""
        means = {"loss": sum(self._losses) / len(self._losses)}
        return means | {name: part / whole for name, (part, whole) in self._shares.items() if whole}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after the steps looked at; the same on all workers."""
        return {
            "losses": self._losses,
            "shares": self._shares,
            "latest": self.latest,
            "seconds": self.seconds,
        }
