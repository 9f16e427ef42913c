"""Connects Ray Tune to the study of a search."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import RESULT_DUPLICATE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from conr_ray.errors import UserError
from conr_ray.searching.population import Population
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_attributes import (
    CONFIG_HASH,
    FAILURE,
    RETRY_OF,
    TRIAL_ID,
    Leg,
    without_retried,
)

# Key in a trial's reports to Tune, besides the metric and a failure.
EPOCHS = "epochs"
# Keys in a trial's config from Tune, besides its id.
POINT, LEG = "point", "leg"
_GAVE_UP = "its processes died more often than --max-retries allows"


def num_left(space: SearchSpace, study: optuna.Study, num_trials: int) -> int:
    """Number of the search's trials that have not ended; stopped and failed ones have."""
    if space.exchanges:
        return Population(space, study).num_left()
    trials = without_retried(study.get_trials(deepcopy=False))
    return max(0, num_trials - sum(trial.state.is_finished() for trial in trials))


def retry_failed(space: SearchSpace, study: optuna.Study) -> int:
    """Have the failed trials run once more, from their last checkpoints; return their number.

    A study does not change a trial that has ended, so each gets another one at the same point and
    in the same directory.

    Raises:
        UserError: the search is a population.
    """
    if space.exchanges:
        raise UserError(
            "--retry-failed: others have taken the places of a population's failed members: leave "
            "it out"
        )
    trials = without_retried(study.get_trials(deepcopy=False))
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    for trial in failed:
        # One that failed before it had a name gets one now.
        names = (TRIAL_ID, CONFIG_HASH)
        kept = {name: value for name, value in trial.user_attrs.items() if name in names}
        study.enqueue_trial(trial.params, user_attrs={**kept, RETRY_OF: trial.number})
    return len(failed)


class StudySearcher(Searcher):
    """Gives Tune the study's trials: first interrupted ones, then new ones.

    The study records a trial that failed or reported a non-finite value as FAIL, and one stopped
    before its last epoch, or any but the last leg of a population, as PRUNED. Tune gets
    {"trial_id": ..., "point": ...}, and "leg" in a population; the id names the trial's directory
    and stays the same when the trial is resumed.
    """

    def __init__(self, space: SearchSpace, study: optuna.Study) -> None:
        super().__init__(metric=space.metric, mode=space.direction)
        self._space = space
        self._study = study
        self._trials: dict[str, optuna.Trial] = {}
        self._num_epochs: dict[str, int] = {}
        self._population = Population(space, study) if space.exchanges else None
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._left_running = deque(optuna.Trial(study, t._trial_id) for t in running)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The config of the next trial; None if it has to wait for others. `trial_id` is Tune's."""
        if self._left_running:
            trial = self._left_running.popleft()
        elif self._population is None:
            trial = self._study.ask()
        elif self._population.num_left() == 0:
            return str(Searcher.FINISHED)
        elif (leg := self._population.ask()) is None:
            return None
        else:
            trial = leg
        point = self._space(trial)
        name = trial.user_attrs.get(TRIAL_ID)
        if name is None:
            name = f"{trial.number:04d}-{trial_id}"
            # Its name is last: a trial that has one, whatever killed the search, has both.
            trial.set_user_attr(CONFIG_HASH, self._space.config(point).content_hash())
            trial.set_user_attr(TRIAL_ID, name)
        self._trials[trial_id] = trial
        self._num_epochs[trial_id] = self._space.config(point).schedule.epochs
        given = {TRIAL_ID: name, POINT: point}
        return given if self._population is None else {**given, LEG: self._leg(trial)}

    def _leg(self, trial: optuna.Trial) -> dict[str, Any]:
        """A leg's begin and end, and the id of the trial that it continues, if any."""
        leg = Leg.of(trial, self._space)
        parent = None
        if leg.parent is not None:
            known = self._study.get_trials(deepcopy=False)
            parent = known[leg.parent].user_attrs[TRIAL_ID]
        return {"parent": parent, "begin": leg.begin, "end": leg.end}

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Report an intermediate value; return whether early stopping ends the trial.

        The value's step is the number of epochs trained. No trial is stopped after its last epoch.
        """
        trial, value = self._trials[trial_id], result[self._space.metric]
        # With several metrics, Optuna keeps no intermediate values.
        if len(self._space.metrics) > 1 or not math.isfinite(value):
            return False
        # A resumed trial may repeat epochs that it has already reported.
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if result[EPOCHS] not in known:
            trial.report(value, result[EPOCHS])
        return result[EPOCHS] < self._num_epochs[trial_id] and trial.should_prune()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how the trial ended."""
        trial = self._trials.pop(trial_id)
        values = [(result or {}).get(metric, math.nan) for metric in self._space.metrics]
        if error or result is None or result.get(FAILURE) or not all(map(math.isfinite, values)):
            reason = _GAVE_UP if error else (result or {}).get(FAILURE)
            if reason:
                trial.set_user_attr(FAILURE, reason)
            self._study.tell(trial, state=TrialState.FAIL)
        elif result[EPOCHS] < self._num_epochs[trial_id]:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, values)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher, but nothing is restored from the pickle.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the journal holds everything."""


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the study's pruner stops."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Tell Tune after each report whether the trial stops or continues."""
        if result.get(RESULT_DUPLICATE):  # Tune repeats the last report when a trial ends
            return TrialScheduler.CONTINUE
        stop = self._searcher.should_stop(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
