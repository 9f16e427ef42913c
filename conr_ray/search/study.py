"""The Optuna study behind a search, and its connection to Ray Tune (ask and tell).

The study's journal is the only record of a search: drawn points, intermediate values, final states
and what early stopping has compared. A killed search resumes from it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import RESULT_DUPLICATE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from conr_ray.method.keyed_random import fold
from conr_ray.search.population import Leg, Population
from conr_ray.search.space import SearchSpace

# Keys of what a trial reports to Tune besides the metric.
EPOCHS, FAILURE = "epochs", "failure"
# Keys of what a trial gets from Tune.
TRIAL_ID, POINT, LEG = "trial_id", "point", "leg"
# An attribute of a trial in the study, besides its id.
CONFIG_HASH = "config_hash"


def open_study(space: SearchSpace, storage: BaseStorage, name: str) -> optuna.Study:
    """The study of `space` called `name`, created with the points tried first if there is none."""
    # Optuna warns of each field that it samples independently.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["maximize" if d == "max" else "minimize" for d in space.directions],
        pruner=_pruner(space),
        load_if_exists=True,
    )
    num_trials = len(study.get_trials(deepcopy=False))
    # A resumed search must not draw its first points again.
    study.sampler = _sampler(space, fold(space.seed, num_trials) % 2**32)
    # A grid holds its points already, a population draws its own.
    if not num_trials and not space.exchanges and (space.first or space.sampler != "grid"):
        for point in space.first_points():
            study.enqueue_trial(point)
    return study


def journal_file(path: Path) -> BaseStorage:
    """The storage for a study in a file."""
    return JournalStorage(JournalFileBackend(str(path)))


def num_left(space: SearchSpace, study: optuna.Study, num_trials: int) -> int:
    """Number of the search's trials that have not ended."""
    if space.exchanges:
        return Population(space, study).num_left()
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    return max(0, num_trials - ended)


def _sampler(space: SearchSpace, seed: int) -> BaseSampler:
    """The Optuna sampler; fields whose range depends on others are sampled independently."""
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        match space.sampler:
            case "tpe":
                return samplers.TPESampler(
                    seed=seed, n_startup_trials=5, multivariate=True, constant_liar=True
                )
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, n_startup_trials=5)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=5)
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "grid":
                # The study identifies tried points by their position in an order.
                return _GridSampler(space.grid(), seed=space.seed)


class _GridSampler(samplers.GridSampler):
    """A grid sampler for ask and tell, where its end is not an error."""

    def after_trial(self, *_: object, **__: object) -> None:
        """Do nothing: the base class would stop a loop that does not exist."""


def _pruner(space: SearchSpace) -> BasePruner:
    """The scheduler of the space, as a pruner of the study."""
    scheduler, start = space.scheduler, space.clock_start
    if scheduler is None:
        return pruners.NopPruner()
    grace = space.grace_epochs - start
    match scheduler.kind:
        case "asha":
            return _ClockPruner(
                pruners.SuccessiveHalvingPruner(
                    min_resource=grace, reduction_factor=scheduler.reduction_factor
                ),
                start,
            )
        case "hyperband":
            return _ClockPruner(
                pruners.HyperbandPruner(
                    min_resource=grace,
                    max_resource=space.config().schedule.epochs - start,
                    reduction_factor=scheduler.reduction_factor,
                ),
                start,
            )
        case "median":
            median = pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=space.grace_epochs)
            return _ClockPruner(median, start, zero=0)
        case "pbt" | "pb2":
            return pruners.NopPruner()


class _ClockPruner(BasePruner):
    """A pruner that ignores epochs up to `start` and counts from there or from `zero`."""

    def __init__(self, pruner: BasePruner, start: int, zero: int | None = None) -> None:
        self._pruner = pruner
        self._start = start
        self._zero = start if zero is None else zero

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial."""
        shifted = copy.copy(trial)
        shifted.intermediate_values = {
            step - self._zero: value
            for step, value in trial.intermediate_values.items()
            if step > self._start
        }
        return bool(shifted.intermediate_values) and self._pruner.prune(study, shifted)


class StudySearcher(Searcher):
    """Gives Tune the study's trials: first those left running, then new ones.

    A trial that failed or reported a non-finite value becomes FAIL; one stopped before its last
    epoch becomes PRUNED, as do all legs of a population but the last. Tune gets
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
        """The next trial's config, None if it has to wait; `trial_id` is Tune's id."""
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
            trial.set_user_attr(TRIAL_ID, name)
            trial.set_user_attr(CONFIG_HASH, self._space.config(point).content_hash())
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

        The value's step is the number of epochs trained. Never true after the last epoch.
        """
        trial, value = self._trials[trial_id], result[self._space.metric]
        # Optuna keeps no intermediate values of several metrics.
        if len(self._space.metrics) > 1 or not math.isfinite(value):
            return False
        # A resumed trial may repeat epochs that it has reported before.
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
            self._study.tell(trial, state=TrialState.FAIL)
        elif result[EPOCHS] < self._num_epochs[trial_id]:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, values)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles this object but never restores it.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the journal has it all."""


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the study's pruner stops."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Decide, after each report, whether the trial goes on."""
        if result.get(RESULT_DUPLICATE):  # Tune repeats the last result
            return TrialScheduler.CONTINUE
        stop = self._searcher.should_stop(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
