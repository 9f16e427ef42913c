"""The watch over the trials of a search, in Tune's own loop."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from conr_ray.scaling.watch import Watch
from conr_ray.searching.trial_attributes import TRIAL_ID


class TrialWatch(Callback):
    """A Tune callback: looks at the workers of all trials that run."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; what is watched is not part of a search's state.
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        running = (trial for trial in trials if trial.status == Trial.RUNNING)
        self._watch.look({trial.config[TRIAL_ID] for trial in running})
