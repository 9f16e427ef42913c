"""Weights & Biases: one run for each trial, written by one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import wandb

from conr_ray.config import RunConfig
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.tracking.wandb_file import logged_epochs
from conr_ray.tracking.wandb_media import DrawingBudget, log_checkpoint, snapshot_media
from conr_ray.tracking.wandb_settings import WandbSettings

logger = logging.getLogger(__name__)


def start_wandb(
    settings: WandbSettings, project: str, job_type: str, config: dict[str, Any]
) -> wandb.Run:
    """Start or resume a W&B run."""
    _leave_service_of_another_process()
    return wandb.init(
        project=project,
        id=settings.run_id,
        name=settings.run_id,
        group=settings.group,
        job_type=job_type,
        resume="allow",
        mode="offline" if settings.mode == "offline" else None,
        dir=settings.folder,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )


def _leave_service_of_another_process() -> None:
    """Have W&B start a service process that ends with this process.

    A process inherits the service of the notebook or command that started it. If the process is
    killed, that service keeps its run open, and W&B does not resume a run that is open.
    """
    # Such as 3-PID-unix-/tmp/socket.
    token = os.environ.get(wandb.env.SERVICE, "")
    if f"-{os.getpid()}-" not in token:
        os.environ.pop(wandb.env.SERVICE, None)


class WandbRun(Observer):
    """Logs each epoch once, as a step, with the figures drawn after it.

    A resumed run logs the epochs that W&B has lost. Figures are drawn of the last snapshot, and of
    others while that is cheap compared to training. After the first failure nothing is logged.
    """

    def __init__(self, settings: WandbSettings, config: RunConfig) -> None:
        self._settings = settings
        self._with_artifact = config.tracking.checkpoint_artifact and settings.group is None
        self._budget = DrawingBudget()
        self._figures: dict[int, dict[str, Any]] = {}
        self._logged = logged_epochs(settings.folder, settings.run_id)
        job_type = "train" if settings.group is None else "trial"
        tree = config.model_dump(mode="json")
        self._run = start_wandb(settings, config.tracking.project, job_type, tree)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if settings.mode == "online":
            # Rows in the files may not have been sent before the run was killed.
            summary = dict(self._run.summary) if self._run.resumed else {}
            self._logged = set(range(int(summary.get("epoch", -1)) + 1))
        self._num_epochs = config.schedule.epochs
        self._working = self._drawing = True

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        for row in rows:
            self._log(row)

    def snapshot(self, snapshot: Snapshot) -> None:
        last = snapshot.epoch == self._num_epochs
        wanted = last or self._budget.allows_another()
        if not (self._drawing and wanted) or snapshot.epoch - 1 in self._logged:
            return
        try:
            with self._budget.spending():
                media = snapshot_media(snapshot, self._budget.left_s())
                self._figures = {snapshot.epoch - 1: media}
        except Exception as error:
            self._drawing = False
            logger.warning("cannot draw figures for W&B, continuing without: %s", error)

    def epoch(self, row: MetricRow) -> None:
        self._budget.add_epoch(float(row.get("epoch_time_s") or 0))
        self._log(row)

    def end(self, error: BaseException | None) -> None:
        if error is None and self._with_artifact:
            self._log_artifact()
        # A scheduler stops a trial by SystemExit, which is not a failure.
        failed = error is not None and not isinstance(error, SystemExit)
        self._attempt(lambda: self._run.finish(exit_code=int(failed)))

    def _log(self, row: MetricRow) -> None:
        epoch = int(row["epoch"] or 0)
        if epoch in self._logged:
            return
        self._logged.add(epoch)
        known: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        known |= self._figures.pop(epoch, {})
        self._attempt(lambda: self._run.log(known, step=epoch, commit=True))

    def _log_artifact(self) -> None:
        run_id = self._settings.run_id
        try:
            log_checkpoint(self._run, RunDirectory(self._settings.run_uri), f"{run_id}-checkpoint")
        except Exception as error:
            logger.warning("cannot log the checkpoint to W&B: %s", error)

    def _attempt(self, action: Callable[[], object]) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:
            self._working = False
            logger.warning("W&B failed, continuing without it: %s", error)
