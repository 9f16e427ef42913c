"""Population-based training: runs that copy each other's state while they train.

The members of a population train side by side. At each exchange the worst quarter continue from the
states of the best quarter, at new points: near the copied member's (`pbt`, Jaderberg et al. 2017),
or where a model of the gains of earlier points expects most (`pb2`, Parker-Holder et al. 2020).

What a member trains between two exchanges is a *leg*: a run that starts from another run's state,
and a trial of the study. The study is the only record of a population, so a killed search resumes
from it. No member passes an exchange before all have reached it, so the result depends only on the
seed, not on the workers' speed.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from conr_ray.method.keys import fold
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_attributes import GENERATION, MEMBER, PARENT

_REDRAWN = 0.25
_CANDIDATES = 1000


class Population:
    """Draws the legs of a population of `space.trials` members from its study."""

    def __init__(self, space: SearchSpace, study: optuna.Study) -> None:
        self._space = space
        self._study = study
        self._num_exchanges = len(space.exchanges)

    def ask(self) -> optuna.Trial | None:
        """The next leg; None if it has to wait for running ones."""
        if not self._waiting():
            self._enqueue_next()
        return self._study.ask() if self._waiting() else None

    def num_left(self) -> int:
        """Number of legs that have not ended; 0 if all members have failed."""
        generations = self._generations()
        if _all_failed(generations[-1], self._space.trials):
            return 0
        ended = sum(leg.state.is_finished() for legs in generations for leg in legs)
        return self._space.trials * (self._num_exchanges + 1) - ended

    def _generations(self) -> list[list[FrozenTrial]]:
        """Legs by the number of exchanges before them, in the order of members."""
        legs = self._study.get_trials(deepcopy=False)
        newest = max((leg.user_attrs[GENERATION] for leg in legs), default=0)
        found: list[list[FrozenTrial]] = [[] for _ in range(newest + 1)]
        for leg in legs:
            found[leg.user_attrs[GENERATION]].append(leg)
        return [sorted(legs, key=lambda leg: int(leg.user_attrs[MEMBER])) for legs in found]

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _enqueue_next(self) -> None:
        """Enqueue the missing legs of the newest generation, or the next one."""
        generations, size = self._generations(), self._space.trials
        if len(generations[-1]) == size:
            ended = all(leg.state.is_finished() for leg in generations[-1])
            if not ended or _all_failed(generations[-1], size):
                return
            generations.append([])
        generation = len(generations) - 1
        if generation > self._num_exchanges:
            return
        known = {leg.user_attrs[MEMBER] for leg in generations[-1]}
        legs = self._children(generations[-2], generation) if generation else self._first_legs()
        for member, (parent, point) in enumerate(legs):
            if member not in known:
                attributes = {GENERATION: generation, MEMBER: member, PARENT: parent}
                self._study.enqueue_trial(point, user_attrs=attributes)

    def _numbers(self, generation: int, member: int) -> random.Random:
        return random.Random(fold(self._space.seed, "population", generation, member))

    def _first_legs(self) -> Iterator[tuple[None, dict[str, Any]]]:
        """The space's first points, then random ones."""
        first = self._space.first_points()
        for member in range(self._space.trials):
            known = member < len(first)
            yield None, first[member] if known else self._space.drawn(self._numbers(0, member))

    def _children(
        self, legs: list[FrozenTrial], generation: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Parent's number and point of each member's next leg."""
        ranked = sorted(legs, key=self._badness)
        quarter = max(1, len(legs) // 4)
        best = [leg for leg in ranked[:quarter] if leg.state != TrialState.FAIL]
        worst = {leg.number for leg in ranked[-quarter:]}
        going_on = [leg for leg in legs if leg.number not in worst and leg.state != TrialState.FAIL]
        chosen = [(leg, leg.params) for leg in going_on]
        for member, leg in enumerate(legs):
            if leg in going_on:
                yield leg.number, leg.params
                continue
            numbers = self._numbers(generation, member)
            parent = numbers.choice(best)
            assert self._space.scheduler is not None
            if self._space.scheduler.kind == "pbt":
                point = self._space.near(parent.params, numbers, redrawn=_REDRAWN)
            else:
                point = self._most_promising(parent, chosen, generation, numbers)
                chosen.append((parent, point))
            yield parent.number, point

    def _badness(self, leg: FrozenTrial) -> float:
        if leg.state == TrialState.FAIL or leg.value is None:
            return math.inf
        return -leg.value if self._space.direction == "max" else leg.value

    def _most_promising(
        self,
        parent: FrozenTrial,
        chosen: list[tuple[FrozenTrial, dict[str, Any]]],
        generation: int,
        numbers: random.Random,
    ) -> dict[str, Any]:
        """The point with the best upper confidence bound of a Gaussian process over legs' gains.

        Inputs are generation, the value that a leg began with, and its point, scaled by their
        ranges. Points already given to others of the generation count as observed with their
        expected gain. Unlike in PB2, the kernel is a single Matern over all inputs with learnt
        length scales, and candidates are drawn from the space, so that choices and dependent bounds
        need no special rule.
        """
        # Only `pb2` needs scikit-learn, which takes a second to import.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern, WhiteKernel

        legs = [leg for legs in self._generations()[:generation] for leg in legs]
        trained = [leg for leg in legs if leg.state != TrialState.FAIL and leg.value is not None]
        begun_with = np.array([self._value_at_begin(leg, legs) for leg in trained])
        gains = np.array([leg.value for leg in trained], dtype=float) - begun_with
        if self._space.direction == "min":
            gains = -gains
        low, span = begun_with.min(), np.ptp(begun_with) or 1.0

        def inputs(number: int, value: float, point: dict[str, Any]) -> list[float]:
            when = number / self._num_exchanges
            return [when, (value - low) / span, *self._space.in_unit_cube(point)]

        known = [
            inputs(leg.user_attrs[GENERATION], value, leg.params)
            for leg, value in zip(trained, begun_with, strict=True)
        ]
        standard = (gains - gains.mean()) / (gains.std() or 1.0)
        assert parent.value is not None
        width = len(known[0])
        kernel = Matern([1.0] * width, [(0.1, 100.0)] * width, nu=2.5) + WhiteKernel(0.1, (1e-3, 1))
        model = GaussianProcessRegressor(kernel, random_state=numbers.randrange(2**31))
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            model.fit(known, standard)
        pending = [inputs(generation, leg.value or 0.0, point) for leg, point in chosen]
        if pending:
            # The length scales stay as learnt from observed gains.
            model = GaussianProcessRegressor(model.kernel_, optimizer=None).fit(
                [*known, *pending], [*standard, *model.predict(pending)]
            )
        candidates = [self._space.drawn(numbers) for _ in range(_CANDIDATES)]
        mean, deviation = model.predict(
            [inputs(generation, parent.value, point) for point in candidates], return_std=True
        )
        confidence = math.sqrt(max(0.0, 0.2 + math.log(0.4 * len(known))))
        return candidates[int(np.argmax(mean + confidence * deviation))]

    def _value_at_begin(self, leg: FrozenTrial, legs: list[FrozenTrial]) -> float:
        """The parent's value; for a first leg, the first value that it reported."""
        parent = leg.user_attrs[PARENT]
        if parent is None:
            return leg.intermediate_values[min(leg.intermediate_values)]
        return float(next(p.value or 0.0 for p in legs if p.number == parent))


def _all_failed(legs: list[FrozenTrial], size: int) -> bool:
    return len(legs) == size and all(leg.state == TrialState.FAIL for leg in legs)
