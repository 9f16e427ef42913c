"""One trial: a run at a point of the space, in its own directory, reporting to Tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.tune

from conr_ray.engine.observer import MetricRow
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk import TrunkStore
from conr_ray.errors import RunFailed, UserError
from conr_ray.scaling.cluster import WorkerResources
from conr_ray.scaling.train_job import run_here, run_on_workers
from conr_ray.search.space import SearchSpace
from conr_ray.search.study import EPOCHS, FAILURE, POINT, TRIAL_ID
from conr_ray.tracking.wandb_run import WandbSettings


@dataclass(frozen=True)
class TrialRunner:
    """Runs trials of a search; Tune calls it, in an actor, with a point of the space.

    A trial of one worker trains in the actor itself, which is reused for the next trial; with more
    workers the actor only waits for Ray Train. A restarted trial goes on from its checkpoint.
    """

    space: SearchSpace
    search_uri: str
    search_name: str
    resources: WorkerResources
    wandb: WandbSettings
    trunks: TrunkStore | None

    def __call__(self, given: dict[str, Any]) -> None:
        trial_id = given[TRIAL_ID]
        directory = RunDirectory(f"{self.search_uri}/trials/{trial_id}")
        config = self.space.config(given[POINT])
        wandb = self.wandb.for_run(
            trial_id, name=trial_id, group=self.search_name, folder=directory.uri
        )
        reporter = _TuneReporter(self.space.metric, config.schedule.epochs)
        try:
            directory.claim(config, resume=True)
            if self.resources.workers == 1:
                run_here(config, directory, self.resources, wandb, reporter, self.trunks)
            else:
                rows = run_on_workers(config, directory, self.resources, wandb, self.trunks)
                for row in rows:
                    reporter.epoch(row)
                reporter.end(None)
        except (UserError, RunFailed) as error:
            # Raised, Tune would try the trial again, to the same end.
            reporter.failure(str(error))


class _TuneReporter:
    """An observer that reports epochs with the metric to Tune, which may stop the trial there.

    The last epoch is reported when all else is done, so that nothing of a whole run is cut off.
    """

    def __init__(self, metric: str, num_epochs: int) -> None:
        self._metric = metric
        self._num_epochs = num_epochs
        self._epochs = 0
        self._last: dict[str, Any] | None = None

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        self._epochs = len(rows)

    def epoch(self, row: MetricRow) -> None:
        self._epochs = int(row["epoch"] or 0) + 1
        if row.get(self._metric) is None:
            return
        self._last = {EPOCHS: self._epochs, self._metric: row[self._metric]}
        if self._epochs < self._num_epochs:
            ray.tune.report(self._last)

    def failure(self, message: str) -> None:
        ray.tune.report({EPOCHS: self._epochs, self._metric: math.nan, FAILURE: message})

    def end(self, error: BaseException | None) -> None:
        if error is None and self._last is not None:
            ray.tune.report(self._last)
