"""The live display of a search: trials by state, best so far, time left."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from conr_ray.engine.initial_weights import weights_digest
from conr_ray.engine.trunk_store import TrunkStore, trunk_name
from conr_ray.errors import UserError, last_line
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study_searcher import EPOCHS, LEG, POINT
from conr_ray.searching.trial_attributes import FAILURE, TRIAL_ID
from conr_ray.tracking.progress import duration

logger = logging.getLogger(__name__)


class LiveDisplay(Callback):
    """A Tune callback: a live panel on a terminal, one line per trial elsewhere.

    `on_news` is called when there is something new to show.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_trials: int,
        console: Console,
        trunks: TrunkStore | None,
        fingerprint: str,
        on_news: Callable[[], None] | None = None,
    ) -> None:
        self._on_news = on_news
        self._space = space
        self._trunks = trunks
        self._fingerprint = fingerprint
        # Shown each second, and read once.
        self._weights_digest = functools.cache(weights_digest)
        self._num_trials = num_trials
        self._console = console
        self._started = time.monotonic()
        self._states: dict[str, str] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._given: dict[str, dict[str, Any]] = {}
        self._live = Live(
            console=console, refresh_per_second=1, transient=True, get_renderable=self._panel
        )
        if console.is_terminal:
            self._live.start()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; a terminal is not part of a search's state.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show the trial as running."""
        self._note(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the trial's newest metrics."""
        self._last[trial.trial_id] = result
        self._note(trial, "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show how the trial has ended."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that the trial has failed."""
        self._end(trial, error=True)

    def close(self) -> None:
        """Stop using the terminal."""
        if self._live.is_started:
            self._live.stop()

    def _note(self, trial: Any, state: str) -> None:
        self._given[trial.trial_id] = trial.config
        self._states[trial.trial_id] = state
        if self._on_news is not None:
            self._on_news()

    def _end(self, trial: Any, error: bool = False) -> None:
        result = self._last.get(trial.trial_id, {FAILURE: "it reported nothing"})
        failure = result.get(FAILURE)
        if error:
            failure = last_line(trial.get_error())
            # With its traceback, which nobody else keeps: into the file of what libraries say.
            logger.error("trial %s: %s", trial.config[TRIAL_ID], trial.get_error())
        stopped = result.get(EPOCHS, 0) < self._stretch(trial.config)[1]
        state = "failed" if failure else "stopped" if stopped else "complete"
        self._note(trial, state)
        ended = sum(state != "running" for state in self._states.values())
        self._console.print(
            f"trial {ended}/{self._num_trials} {state}"
            + (f" ({failure})" if failure else "")
            + f" after {result.get(EPOCHS, 0)} epochs, {self._figures(result)}: "
            + _in_words(trial.config[POINT], self._space),
            highlight=False,
        )

    def _figures(self, result: dict[str, Any]) -> str:
        unknown = float("nan")
        return ", ".join(f"{m} {result.get(m, unknown):.3f}" for m in self._space.metrics)

    def _stretch(self, given: dict[str, Any]) -> tuple[int, int]:
        """Epochs at which a trial begins and ends."""
        if (leg := given.get(LEG)) and leg["parent"] is not None:
            return leg["begin"], leg["end"]
        config = self._space.config(given[POINT])
        begin = self._trunks.fork_epoch(config) if self._trunks else 0
        return begin, leg["end"] if leg else config.schedule.epochs

    def _panel(self) -> Group:
        # Called by the thread that refreshes the terminal, while trials change.
        counts = Counter(list(self._states.values()))
        counts["waiting"] = self._num_trials - len(self._states)
        states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        elapsed = time.monotonic() - self._started
        lines = [f"{states}; {duration(elapsed)} so far{self._time_left(elapsed)}"]
        lines += self._trunk_lines()
        sign = 1 if self._space.direction == "max" else -1
        metric = self._space.metric
        known = {i: r for i, r in list(self._last.items()) if not r.get(FAILURE)}
        if known:
            best = max(known, key=lambda trial_id: sign * known[trial_id][metric])
            lines.append(
                f"best so far: {self._figures(known[best])} at epoch {known[best][EPOCHS]}: "
                + _in_words(self._given[best][POINT], self._space)
            )
        return Group(*(Text(line) for line in lines))

    def _trunk_lines(self) -> list[str]:
        """Progress of the trunks that running trials wait for."""
        wanted: dict[str, int] = {}
        for trial_id, state in list(self._states.items()):
            if self._trunks is not None and state == "running" and trial_id not in self._last:
                config = self._space.config(self._given[trial_id][POINT])
                # Weights that are gone since are told by the trial.
                with suppress(UserError):
                    weights = self._weights_digest(config.model, config.views.size)
                    name = trunk_name(config, self._fingerprint, weights)
                    wanted[name] = max(self._trunks.fork_epoch(config), wanted.get(name, 0))
        return [
            f"trunk {name}: {trained} of {epochs} epochs"
            for name, epochs in wanted.items()
            if self._trunks is not None
            and epochs
            and (trained := self._trunks.epochs_trained(name)) is not None
        ]

    def _time_left(self, elapsed: float) -> str:
        """Estimated from epochs trained, assuming that no further trial is stopped early."""
        states = dict(self._states)
        stretches = {i: self._stretch(given) for i, given in list(self._given.items())}
        last = {i: result[EPOCHS] for i, result in list(self._last.items()) if i in stretches}
        done = sum(max(0, epochs - stretches[i][0]) for i, epochs in last.items())
        if not done:
            return ""
        lengths = [end - begin for begin, end in stretches.values()]
        left = sum(lengths) / len(lengths) * (self._num_trials - len(lengths))
        for i, (begin, end) in stretches.items():
            if states[i] == "running":
                left += end - max(begin, last.get(i, 0))
        return f", at most {duration(elapsed * left / done)} left"


def _in_words(point: dict[str, Any], space: SearchSpace) -> str:
    names = ((name, name.rpartition(".")[2]) for name in space.search)
    return ", ".join(
        f"{short}={point[name]:.3g}" if isinstance(point[name], float) else f"{short}={point[name]}"
        for name, short in names
    )
