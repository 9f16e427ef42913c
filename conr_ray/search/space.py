"""What a search varies: a YAML file read into a tree that Optuna can draw from.

    preset: digits                       # the run that is varied
    metric: nmi                          # what is made large (or, with mode: min, small)
    trials: 8
    fixed: {schedule.epochs: 60}         # fields set for all trials
    search:                              # fields varied
      neighborhood.k1: {int: [5, 40], log: true}
      neighborhood.k2: {int: [1, neighborhood.k1]}
      boundary.initial_fraction: {float: [0.6, 1.0], step: 0.05}
      neighborhood.kind: {choice: [contextual, euclidean]}

A bound may name another searched field: the draw then stays within that field's value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from conr_ray.config import RunConfig, check_field, get_field, load_preset, read_yaml
from conr_ray.engine.label_free import LABEL_FREE_SCORES
from conr_ray.engine.trunk import shapes_trunk
from conr_ray.errors import UserError
from conr_ray.search.dimension import Dimension, Drawer, SpacePart

# Metrics that count agreement with labels, and those that need none.
LABELLED_METRICS = ("acc", "nmi", "ari", "neighbor_purity")
LABEL_FREE_METRICS = (*LABEL_FREE_SCORES, "loss")

_DRAWS_CHECKED = 64


class SchedulerConfig(SpacePart):
    """Early stopping. Its clock starts when the last group stage has, and counts epochs trained.

    Trials that fork at different epochs are so compared where as much of the learning rate's
    schedule lies behind them, and none before its group stage.
    """

    kind: Literal["asha", "hyperband", "median"] = "asha"
    grace_epochs: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="no trial is stopped before; where unset, when a quarter of what follows the "
        "latest group_start is trained",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(2, description="of asha and hyperband")


class SearchSpace(SpacePart):
    """A search: the run that is varied, its varied fields and how trials are judged.

    Called with an Optuna trial it draws a point, a mapping of dotted fields to values.
    """

    preset: str
    metric: str = Field(
        "auto", description="auto is nmi where there are labels, else neighbor_consistency"
    )
    mode: Literal["max", "min"] | None = None
    trials: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    fixed: dict[str, Any] = Field({})
    search: dict[str, Dimension]
    first: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = Field(
        None, description="points tried first; the preset's own values where unset"
    )
    sampler: Literal["tpe", "cmaes", "gp", "random", "grid"] = "tpe"
    scheduler: SchedulerConfig | None = SchedulerConfig()

    @property
    def direction(self) -> Literal["max", "min"]:
        """Whether the metric is made large or small."""
        return self.mode or ("min" if self.metric == "loss" else "max")

    @property
    def order(self) -> list[str]:
        """Searched fields, each after those that its bounds name."""
        ordered: list[str] = []
        while len(ordered) < len(self.search):
            ready = [
                name
                for name, dimension in self.search.items()
                if name not in ordered and set(dimension.needs()) <= set(ordered)
            ]
            if not ready:
                stuck = next(name for name in self.search if name not in ordered)
                raise UserError(f"search.{stuck}: its bounds need each other: give one a number")
            ordered += ready
        return ordered

    @property
    def clock_start(self) -> int:
        """Epochs before which early stopping compares nothing: the latest start of a group stage.

        0 where there is none, or where trials are to be stopped before.
        """
        latest, asked = max(self.group_starts, default=0), self.asked_grace
        return 0 if asked and asked <= latest else latest

    @property
    def asked_grace(self) -> int | None:
        """The grace that the space sets itself."""
        return self.scheduler.grace_epochs if self.scheduler else None

    @property
    def grace_epochs(self) -> int:
        """Epochs that every trial trains."""
        following = self.config().schedule.epochs - self.clock_start
        return self.asked_grace or self.clock_start + max(1, following // 4)

    @property
    def group_starts(self) -> frozenset[int]:
        """Every epoch at which a trial can begin its group stage."""
        dimension = self.search.get("schedule.group_start")
        if dimension is None:
            values: Sequence[Any] = [self.config().schedule.group_start]
        else:
            values = dimension.values(self.search) or ()
        return frozenset(v for v in values if isinstance(v, int) and v > 0)

    @property
    def num_trunks(self) -> int | None:
        """How many instance stages the trials can have; None where there is no end of them."""
        counts = [
            None if (values := dimension.values(self.search)) is None else len(values)
            for name, dimension in self.search.items()
            if shapes_trunk(name)
        ]
        return None if None in counts else math.prod(count for count in counts if count)

    @property
    def most_trials(self) -> int | None:
        """Points that there are to try, where there is an end of them: of a grid."""
        if self.sampler != "grid":
            return None
        return math.prod(len(values) for values in self.grid().values()) + len(self.first or ())

    def grid(self) -> dict[str, list[Any]]:
        """All values of every searched field.

        Raises:
            UserError: a field has no end of them, or has values that depend on another's.
        """
        found = {}
        for name, dimension in self.search.items():
            values = dimension.values(self.search)
            if values is None or dimension.needs():
                raise UserError(
                    f"search.{name}: sampler grid needs a choice, or numbers as bounds and a step"
                )
            found[name] = values
        return found

    def __call__(self, trial: Drawer) -> dict[str, Any]:
        """Draw a point."""
        drawn: dict[str, Any] = {}
        for name in self.order:
            drawn[name] = self.search[name].draw(trial, name, drawn)
        return drawn

    def first_points(self) -> list[dict[str, Any]]:
        """The points tried first, each complete."""
        preset = load_preset(self.preset)
        own = {name: get_field(preset, name) for name in self.search}
        return [{**own, **point} for point in (self.first if self.first is not None else ({},))]

    def config(self, point: Mapping[str, Any] | None = None) -> RunConfig:
        """The run at a point, by default at the one tried first."""
        point = self.first_points()[0] if point is None else point
        return load_preset(self.preset, {**self.fixed, **point})


def load_space(path: str | Path, fixed: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search in the YAML file `path`, checked; `fixed` adds to its fixed fields.

    Raises:
        UserError: the file cannot be read, a field is unknown, searched and fixed at once, has an
            empty range, or a point of the space cannot be a run.
    """
    tree = read_yaml(path, "--space", "see search_spaces/")
    if not isinstance(tree, Mapping):
        raise UserError(f"--space {path}: a space is a mapping with preset and search")
    own = tree.get("fixed") or {}
    if not isinstance(own, Mapping):
        raise UserError(f"--space {path}: fixed={own!r} is not a mapping of fields to values")
    tree = {**tree, "fixed": {**own, **(fixed or {})}}
    try:
        space = SearchSpace.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = "no such key" if first["type"] == "extra_forbidden" else first["msg"]
        if first["loc"][:1] == ("sampler",) or first["loc"][-1:] == ("kind",):
            reason = f"{first['input']!r}: {first['msg'].removeprefix('Input should be ')}"
        if "choice" in first["loc"]:
            reason = "a choice is a list of numbers, words, true and false"
        raise UserError(f"--space {path}: {name}: {reason[0].lower()}{reason[1:]}") from None
    _check(space)
    return space


def _check(space: SearchSpace) -> None:
    known = (*LABELLED_METRICS, *LABEL_FREE_METRICS)
    if space.metric not in ("auto", *known):
        raise UserError(f"metric={space.metric}: no run reports it; choose from {', '.join(known)}")
    if not space.search:
        raise UserError("search: no field is searched; name one, such as neighborhood.k1")
    for name, dimension in space.search.items():
        check_field(name)
        if name in space.fixed:
            raise UserError(
                f"{name} is both fixed ({space.fixed[name]}) and searched: drop one of the two"
            )
        if problem := dimension.problem():
            raise UserError(f"search.{name}: {problem}")
        for needed in dimension.needs():
            if needed not in space.search:
                raise UserError(
                    f"search.{name}: its bound {needed} is not searched: give a number instead"
                )
            if not space.search[needed].bounds_with(dimension):
                raise UserError(
                    f"search.{name}: its bound {needed} is {space.search[needed]}: give a number "
                    "instead"
                )
    _check_first(space)
    latest = max(space.group_starts, default=0)
    if (space.asked_grace or latest) < latest and "schedule.group_start" in space.search:
        raise UserError(
            f"scheduler.grace_epochs={space.asked_grace} would compare trials before and after "
            f"their group_start: raise it above {latest}, or leave it out"
        )
    if space.sampler == "grid":
        space.grid()
    _check_draws(space)


def _check_first(space: SearchSpace) -> None:
    for point in space.first_points():
        for name, value in point.items():
            check_field(name)
            if name not in space.search:
                raise UserError(f"first: {name}={value} is not searched: move it to fixed")
        for name in space.order:
            if not space.search[name].contains(point[name], point):
                raise UserError(
                    f"search.{name}: the first trial's {point[name]} is not {space.search[name]}: "
                    "widen the range, or give first: [{...}]"
                )
        space.config(point)


def _check_draws(space: SearchSpace) -> None:
    """Many corners and random points must be runs, so that no trial is lost hours later."""
    numbers = random.Random(0)
    shares: list[Callable[[], float]] = [lambda: 0.0, lambda: 1.0]
    shares += [numbers.random, lambda: float(numbers.random() < 0.5)] * (_DRAWS_CHECKED // 2)
    for share in shares:
        try:
            space.config(space(_Drawn(share)))
        except UserError as error:
            raise UserError(f"the space has points that cannot run: {error}") from None


class _Drawn:
    """Draws the value at a share of each range; shares of 0 and 1 are its ends."""

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[min(int(self._share() * len(choices)), len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return round(self.suggest_float(name, low, high, step=step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        if low > high:
            raise UserError(f"search.{name} would be between {low} and {high}: change its bounds")
        value = low + self._share() * (high - low)
        return value if step is None else low + (value - low) // step * step
