"""Population-based training: runs that take over one another's state while they train.

The members of a population train side by side. At each exchange the worst quarter of them go on
from the states of the best quarter, at points of their own: near the other's (`pbt`, Jaderberg et
al. 2017), or where a model of what points have gained expects most (`pb2`, Parker-Holder et al.
2020).

What a member trains between two exchanges is a *leg*, a run that begins with another one's state
and a trial of the study: the study alone knows how a population stands, and a search that was
killed goes on from it. All members reach an exchange before one passes it. So the result depends on
the seed and not on which worker was faster.
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

from conr_ray.data.keyed_random import fold
from conr_ray.search.space import SearchSpace
from conr_ray.search.trial_attributes import GENERATION, MEMBER, PARENT

_REDRAWN = 0.25
_CANDIDATES = 1000


class Population:
    """Draws the legs of a population of `space.trials` members from its study."""

    def __init__(self, space: SearchSpace, study: optuna.Study) -> None:
        self._space = space
        self._study = study
        self._num_exchanges = len(space.exchanges)

    def ask(self) -> optuna.Trial | None:
        """The next leg; None as long as all others that could begin have to wait for one."""
        if not self._waiting():
            self._enqueue_next()
        return self._study.ask() if self._waiting() else None

    def num_left(self) -> int:
        """Legs that have not ended; none where no member is left that could go on."""
        generations = self._generations()
        if _all_failed(generations[-1], self._space.trials):
            return 0
        ended = sum(leg.state.is_finished() for legs in generations for leg in legs)
        return self._space.trials * (self._num_exchanges + 1) - ended

    def _generations(self) -> list[list[FrozenTrial]]:
        """Legs by the number of exchanges before them, each in the order of members."""
        legs = self._study.get_trials(deepcopy=False)
        newest = max((leg.user_attrs[GENERATION] for leg in legs), default=0)
        found: list[list[FrozenTrial]] = [[] for _ in range(newest + 1)]
        for leg in legs:
            found[leg.user_attrs[GENERATION]].append(leg)
        return [sorted(legs, key=lambda leg: int(leg.user_attrs[MEMBER])) for legs in found]

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _enqueue_next(self) -> None:
        """Enqueue what is missing of the newest generation, or the next one."""
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
        """The points that the space has tried first, then some at random."""
        first = self._space.first_points()
        for member in range(self._space.trials):
            known = member < len(first)
            yield None, first[member] if known else self._space.drawn(self._numbers(0, member))

    def _children(
        self, legs: list[FrozenTrial], generation: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of the parent, and point, of each member's next leg."""
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
        """A point by the upper confidence bound of a Gaussian process over what legs gained.

        Inputs are generation, the value that a leg began with, and its point, in units of their
        ranges. Points that others of the generation have got count as known, with the gain that is
        expected of them. Unlike in PB2 the kernel is one Matern over all inputs, its lengths
        learnt, and candidates are draws of the space, so that choices and dependent bounds need no
        rule of their own.
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
            # The lengths stay as they were learnt from what is known.
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
        """The parent's value; of a first leg, the first that it reported."""
        parent = leg.user_attrs[PARENT]
        if parent is None:
            return leg.intermediate_values[min(leg.intermediate_values)]
        return float(next(p.value or 0.0 for p in legs if p.number == parent))


def _all_failed(legs: list[FrozenTrial], size: int) -> bool:
    return len(legs) == size and all(leg.state == TrialState.FAIL for leg in legs)
