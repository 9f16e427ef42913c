"""Weights & Biases: one run for each trial, written by one process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

from conr_ray.config import RunConfig, TrackingConfig
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.method.phases import phase
from conr_ray.method.place import UPLOAD
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_file import has_ended, logged_epochs
from conr_ray.tracking.wandb_media import (
    DrawingBudget,
    log_assignments,
    log_checkpoint,
    snapshot_media,
)
from conr_ray.tracking.wandb_settings import WandbSettings

logger = logging.getLogger(__name__)

# A server that the command has reached is waited for no longer than this, by each process.
_START_S, _FINISH_S = 15, 60
# A checkpoint may be large and the way to the server slow.
_FINISH_WITH_ARTIFACT_S = 3600


def start_wandb(
    settings: WandbSettings,
    tracking: TrackingConfig,
    job_type: str,
    config: dict[str, Any],
    *,
    with_artifact: bool,
) -> wandb.Run:
    """Start or resume a W&B run; `with_artifact` leaves time to upload one at its end."""
    _leave_service_of_another_process()
    start = partial(
        wandb.init,
        project=tracking.project,
        id=settings.run_id,
        name=settings.run_id,
        group=settings.group,
        job_type=job_type,
        resume="allow",
        mode="offline" if settings.mode == "offline" else "online",
        dir=settings.folder,
        config=config,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_START_S,
            finish_timeout=_FINISH_WITH_ARTIFACT_S if with_artifact else _FINISH_S,
            finish_timeout_raises=True,
        ),
    )
    try:
        run = start()
        # W&B tells its process of each import, and if that has died, the import fails.
        unregister_all_post_import_hooks()
        return run
    except Exception:
        # W&B's process keeps the run's id, which could not be logged offline instead.
        wandb.teardown()
        raise


def finish_wandb(run: wandb.Run, settings: WandbSettings, *, exit_code: int = 0) -> None:
    """End a W&B run; the files of an offline one are then whole, for `wandb sync`.

    Those of a run in a bucket are copied there.
    """
    run.finish(exit_code=exit_code)
    if settings.mode != "offline":
        return
    # W&B's process writes the end of the file after it has answered.
    own, deadline = Path(run.dir).parent / f"run-{settings.run_id}.wandb", time.monotonic() + 10
    while not has_ended(own) and time.monotonic() < deadline:
        time.sleep(0.1)
    if settings.in_bucket:
        bucket, here = Folder(settings.run_uri), Path(settings.folder)
        # Those of earlier attempts on this node, too.
        for file in here.glob(f"wandb/offline-run-*-{settings.run_id}/**/*"):
            if file.is_file():
                bucket.write_bytes(file.relative_to(here).as_posix(), file.read_bytes())


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
        self._run = start_wandb(
            settings, config.tracking, job_type, tree, with_artifact=self._with_artifact
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if settings.mode == "online":
            # Rows in the files may not have been sent before the run was killed.
            summary = dict(self._run.summary) if self._run.resumed else {}
            self._logged = set(range(int(summary.get("epoch", -1)) + 1))
        self._num_epochs = config.schedule.epochs
        self._working = self._drawing = True

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        """Log rows of an earlier attempt that W&B lacks."""
        for row in rows:
            self._log(row)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Log the figures of a snapshot, if the time for drawing allows it."""
        last = snapshot.epoch == self._num_epochs and not self._settings.sparing
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
        """Log the metrics of an epoch."""
        self._budget.add_epoch(float(row.get("epoch_time_s") or 0))
        self._log(row)

    def end(self, error: BaseException | None) -> None:
        """Log what the run has made, and finish."""
        if error is None and self._settings.group is None:
            self._log_artifact("assignments", log_assignments)
        if error is None and self._with_artifact:
            self._log_artifact("checkpoint", log_checkpoint)
        # A scheduler stops a trial by SystemExit, which is not a failure.
        failed = error is not None and not isinstance(error, SystemExit)
        with phase(UPLOAD):
            self._attempt(lambda: finish_wandb(self._run, self._settings, exit_code=int(failed)))

    def _log(self, row: MetricRow) -> None:
        epoch = int(row["epoch"] or 0)
        if epoch in self._logged:
            return
        self._logged.add(epoch)
        known: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        known |= self._figures.pop(epoch, {})
        self._attempt(lambda: self._run.log(known, step=epoch, commit=True))

    def _log_artifact(self, what: str, log: Callable[[Any, RunDirectory, str], None]) -> None:
        if not self._working:
            return
        try:
            directory = RunDirectory(self._settings.run_uri)
            log(self._run, directory, f"{self._settings.run_id}-{what}")
        except Exception as error:
            logger.warning("cannot log the %s to W&B: %s", what, error)

    def _attempt(self, action: Callable[[], object]) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:
            self._working = False
            logger.warning("W&B failed, continuing without it: %s", error)
