"""The Optuna study behind a search.

The study's journal is the only record of a search: drawn points, intermediate values, final states
and what early stopping has compared. A killed search resumes from it.
"""

from __future__ import annotations

import copy
import warnings

import optuna
from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from conr_ray.method.keys import fold
from conr_ray.searching.space import SearchSpace

# Where Optuna keeps the point of a trial that was enqueued.
_GIVEN_POINT = "fixed_params"


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
    if not space.exchanges and (space.first or space.sampler != "grid"):
        # A search that was killed between two of them has the first already.
        known = study.get_trials(deepcopy=False)
        num_given = sum(_GIVEN_POINT in trial.system_attrs for trial in known)
        for point in space.first_points()[num_given:]:
            study.enqueue_trial(point)
    return study


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
    """A grid sampler for ask and tell, where the end of the grid is not an error."""

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
