"""The schedules of a run: stage, kept fraction, learning rates, evaluation and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conr_ray.config import RunConfig
from conr_ray.method.schedules import kept_fraction, learning_rate

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Schedule:
    """The schedules of `config` for runs of `steps_per_epoch` steps per epoch."""

    config: RunConfig
    steps_per_epoch: int

    def in_group_stage(self, epoch: int) -> bool:
        """Whether `epoch` is trained with neighbours."""
        start = self.config.group_start_epoch
        return start is not None and epoch >= start

    def fraction(self, epoch: int) -> float:
        """Share of the global batch that the group loss keeps; 1 in the instance stage."""
        if not self.in_group_stage(epoch):
            return 1.0
        start = self.config.group_start_epoch
        assert start is not None
        relax = self.config.schedule.relax_epochs
        return kept_fraction(epoch, start, relax, self.config.boundary.initial_fraction)

    @property
    def all_kept_from(self) -> int:
        """First epoch whose group loss, and that of all later ones, keeps the whole batch."""
        start, boundary = self.config.group_start_epoch or 0, self.config.boundary
        return (
            start if boundary.initial_fraction == 1 else start + self.config.schedule.relax_epochs
        )

    @property
    def clusters_until(self) -> int | None:
        """First epoch with neighbours in all data that reads no clusters; None if all do.

        The boundary filter reads them until it keeps all, and the order of samples that makes
        clusters more even.
        """
        return None if self.config.clustering.evenness else self.all_kept_from

    def evaluated(self, epoch: int) -> bool:
        """Whether the data set is clustered after `epoch`: when due, and for the group stage."""
        if self.scored(epoch):
            return True
        until = None if self.config.neighborhood.pool == "batch" else self.clusters_until
        return (until is None or epoch + 1 < until) and self.in_group_stage(epoch + 1)

    def scored(self, epoch: int) -> bool:
        """Whether the clustering after `epoch` is also rated without labels.

        When due, after the last epoch and, for searches to have a value, the group stage's first.
        """
        ended, first = epoch + 1, self.config.group_start_epoch
        last = self.config.schedule.epochs
        return ended % self.config.evaluation.every == 0 or ended == last or epoch == first

    def continues(self, epoch: int) -> bool:
        """Whether the clustering after `epoch` starts from the one before."""
        ended = epoch + 1
        within = self.in_group_stage(epoch) and ended < self.config.schedule.epochs
        return within and self.config.clustering.warm_start

    def pictured(self, epoch: int) -> bool:
        """Whether a snapshot for figures is taken after `epoch`, which must be evaluated."""
        ended, every = epoch + 1, self.config.evaluation.snapshot_every
        due = every is not None and ended % every == 0 and self.evaluated(epoch)
        return due or ended == self.config.schedule.epochs

    def saved(self, epoch: int) -> bool:
        """Whether a checkpoint is written after `epoch`."""
        ended = epoch + 1
        return ended % self.config.checkpoint.every == 0 or ended == self.config.schedule.epochs

    def set_learning_rates(self, optimizer: Optimizer, epoch: int, step: int) -> float:
        """Set the rates of all parameters for a step; returns the encoder's.

        Each parameter group has one factor per stage.
        """
        optim, schedule = self.config.optim, self.config.schedule
        rate = learning_rate(
            epoch * self.steps_per_epoch + step,
            schedule.warmup_epochs * self.steps_per_epoch,
            self.config.cosine_epochs * self.steps_per_epoch,
            optim.lr * optim.batch_size / 256,
        )
        grouped = self.in_group_stage(epoch)
        if grouped:
            rate *= optim.group_stage_lr_factor
        for group in optimizer.param_groups:
            group["lr"] = rate * group["group_stage_lr_factor" if grouped else "lr_factor"]
        return rate
