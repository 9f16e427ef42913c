"""The Optuna study behind a search, as Ray Tune drives it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from conr_ray.search.space import SearchSpace

# Keys of what a trial reports to Tune besides the metric.
EPOCHS, FAILURE = "epochs", "failure"


class StudySearch(OptunaSearch):
    """OptunaSearch that tells the study how each trial really ended.

    A trial that failed or reported a value that is not finite is told FAIL (the base class leaves
    it RUNNING, or COMPLETE with its last value); one that the scheduler stopped before its last
    epoch is PRUNED (there COMPLETE). Intermediate values stand at the epochs trained, also after
    a restart. Each Optuna trial carries its Tune trial's id as the attribute `trial_id`.
    """

    def __init__(self, space: SearchSpace, journal: Path, study_name: str, first: bool) -> None:
        """Open or create the study in `journal`; `first` adds the points tried first."""
        self._num_epochs = {}
        self._searched = space
        super().__init__(
            space=space,
            metric=space.metric,
            mode=space.direction,
            points_to_evaluate=space.first_points() if first else None,
            sampler=optuna.samplers.TPESampler(seed=space.seed, n_startup_trials=5),
            study_name=study_name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
        )

    _num_epochs: dict[str, int]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The fields of the next trial."""
        point: dict[str, Any] | None = super().suggest(trial_id)
        if point is not None:
            self._ot_trials[trial_id].set_user_attr("trial_id", trial_id)
            self._num_epochs[trial_id] = self._searched.config(point).schedule.epochs
        return point

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report an intermediate value to the study."""
        if trial_id not in self._completed_trials and math.isfinite(result[self.metric]):
            self._ot_trials[trial_id].report(result[self.metric], result[EPOCHS])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study the trial's value and state, once."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        value = (result or {}).get(self.metric, math.nan)
        study, trial = self._ot_study, self._ot_trials[trial_id]
        assert study is not None
        if error or result is None or result.get(FAILURE) or not math.isfinite(value):
            study.tell(trial, state=TrialState.FAIL)
        elif result[EPOCHS] < self._num_epochs[trial_id]:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
