"""One trial: a run at a point of the space, in its own directory, reporting to Tune."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.tune

from conr_ray.engine.collapse import has_collapsed
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunFailed, StorageError, UserError
from conr_ray.scaling.pulse import Pulse
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.train_job import run_on_workers
from conr_ray.scaling.worker import run_here
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study_searcher import EPOCHS, LEG, POINT
from conr_ray.searching.trial_attributes import FAILURE, TRIAL_ID
from conr_ray.storage import disk
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of a search; Tune calls it, in an actor, with a point of the space.

    A one-worker trial trains in the actor itself, which is reused for the next trial; with more
    workers the actor only waits for Ray Train. A restarted trial resumes from its checkpoint. Where
    processes die, Tune and Ray Train start a trial `max_retries` times again; what fails for a
    reason of its own is told as a failure, and not tried again. Workers show by `pulse` that they
    live.
    """

    space: SearchSpace
    search: Folder
    search_name: str
    resources: WorkerResources
    wandb: WandbSettings
    trunks: TrunkStore | None
    pulse: Pulse
    max_retries: int

    def __call__(self, given: dict[str, Any]) -> None:
        """Train the trial that Tune has given, or a leg of it."""
        trial_id = given[TRIAL_ID]
        directory = RunDirectory(f"{self.search.uri}/trials/{trial_id}", self.search)
        config = self.space.config(given[POINT])
        wandb = self.wandb.for_run(trial_id, group=self.search_name, run_uri=directory.uri)
        span, end = WHOLE, config.schedule.epochs
        if leg := given.get(LEG):
            end = leg["end"]
            span = Span(self._parent(leg), None if end == config.schedule.epochs else end)
        reporter, pulse = _TuneReporter(self.space.metrics, end), self.pulse.of(trial_id)

        def run() -> None:
            directory.check_room()
            directory.claim(config, resume=True)
            if self.resources.workers == 1:
                with pulse.beating():
                    run_here(config, directory, self.resources, wandb, reporter, self.trunks, span)
                return
            place, retries = (directory, self.resources, wandb, self.trunks, span), self.max_retries
            for row in run_on_workers(config, *place, max_failures=retries, pulse=pulse):
                reporter.epoch(row)
            reporter.end(None)

        try:
            # A full disk is not the trial's fault: it goes on from its checkpoint.
            disk.patiently(run, directory.uri, (StorageError,), pulse.say)
        except (UserError, RunFailed) as error:
            # If raised, Tune would retry the trial, with the same result.
            reporter.failure(str(error))
        # The next trial of this process needs the memory that a failed one's frames hold.
        gc.collect()

    def _parent(self, leg: dict[str, Any]) -> tuple[RunDirectory, int] | None:
        if leg["parent"] is None:
            return None
        return RunDirectory(f"{self.search.uri}/trials/{leg['parent']}"), leg["begin"]


class _TuneReporter(Observer):
    """An observer that reports metrics to Tune, which may then stop the trial.

    The last epoch is reported after everything else, so that a complete run is never cut off.
    Metrics of collapsed embeddings are not reported, and a trial that ends with them has failed.
    """

    def __init__(self, metrics: Sequence[str], num_epochs: int) -> None:
        self._metrics = metrics
        self._num_epochs = num_epochs
        self._epochs = 0
        self._last: dict[str, Any] | None = None
        self._collapsed_at: int | None = None

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        self._epochs = len(rows)

    def epoch(self, row: MetricRow) -> None:
        epoch = int(row["epoch"] or 0)
        self._epochs = epoch + 1
        collapsed = has_collapsed(row)
        if collapsed is not None:
            self._collapsed_at = epoch if collapsed else None
        if self._collapsed_at is not None:
            return
        if any(row.get(metric) is None for metric in self._metrics):
            return
        self._last = {EPOCHS: self._epochs, **{metric: row[metric] for metric in self._metrics}}
        if self._epochs < self._num_epochs:
            ray.tune.report(self._last)

    def failure(self, message: str) -> None:
        unknown = dict.fromkeys(self._metrics, math.nan)
        ray.tune.report({EPOCHS: self._epochs, **unknown, FAILURE: message})

    def end(self, error: BaseException | None) -> None:
        if error is not None:
            return
        if self._collapsed_at is not None:
            self.failure(f"the embeddings collapsed at epoch {self._collapsed_at}")
        elif self._last is not None:
            ray.tune.report(self._last)
