"""What the metrics of a search depend on."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from conr_ray.search.space import SearchSpace

_FEWEST = 4


def parameter_importances(space: SearchSpace, study: optuna.Study, metric: str) -> dict[str, float]:
    """Share of a metric's variance that each field explains, by Optuna; the largest first.

    Empty where too few trials have ended well.
    """
    place = space.metrics.index(metric)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(ended) < _FEWEST or len({trial.values[place] for trial in ended}) < 2:
        return {}
    # With scikit-learn, and a second to import it: a search that has just begun needs neither.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    evaluator = FanovaImportanceEvaluator(seed=space.seed)
    try:
        return dict(
            get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[place]
            )
        )
    except RuntimeError:
        # Its trees found no split that explains anything.
        return {}
