"""Which searched fields the metrics of a search depend on."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from conr_ray.searching.space import SearchSpace

_FEWEST = 4


def parameter_importances(space: SearchSpace, study: optuna.Study, metric: str) -> dict[str, float]:
    """Share of a metric's variance that each field explains, by Optuna; the largest first.

    Empty if too few trials are complete.
    """
    place = space.metrics.index(metric)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(ended) < _FEWEST or len({trial.values[place] for trial in ended}) < 2:
        return {}
    # Imports scikit-learn, which takes a second and is not needed when a search has just begun.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    evaluator = FanovaImportanceEvaluator(seed=space.seed)
    try:
        return dict(
            get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[place]
            )
        )
    except RuntimeError:
        # The trees of the evaluator found no split.
        return {}
