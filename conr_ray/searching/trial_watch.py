"""The watch over the trials of a search, in Tune's own loop."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.experiment import Trial

from conr_ray.scaling.abandoned import free_abandoned
from conr_ray.scaling.watch import Watch
from conr_ray.searching.trial_attributes import TRIAL_ID

_FREED_EVERY_S = 5.0


class TrialWatch(Callback):
    """A Tune callback: looks at the workers of all trials that run, and at what dead ones hold."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._last_freed = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; what is watched is not part of a search's state.
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the trials that are running, and free what others have left."""
        running = (trial for trial in trials if trial.status == Trial.RUNNING)
        self._watch.look({trial.config[TRIAL_ID] for trial in running})
        if time.monotonic() - self._last_freed > _FREED_EVERY_S:
            # Ray may be away for a moment: it is asked again.
            with suppress(RayError, RuntimeError):
                free_abandoned()
            self._last_freed = time.monotonic()
