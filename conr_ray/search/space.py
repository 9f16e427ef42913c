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
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conr_ray.config import RunConfig, check_field, get_field, load_preset, read_yaml
from conr_ray.engine.label_free import LABEL_FREE_SCORES
from conr_ray.engine.trunk import shapes_trunk
from conr_ray.errors import UserError

# Metrics that count agreement with labels, and those that need none.
LABELLED_METRICS = ("acc", "nmi", "ari", "neighbor_purity")
LABEL_FREE_METRICS = (*LABEL_FREE_SCORES, "loss")

Value = bool | int | float | str
Number = int | float
Finite = Annotated[float, Field(allow_inf_nan=False)]
_DRAWS_CHECKED = 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dimension(_Part):
    """The values of one field: exactly one of `int`, `float` and `choice`."""

    int_bounds: tuple[int | str, int | str] | None = Field(None, alias="int")
    float_bounds: tuple[Finite | str, Finite | str] | None = Field(None, alias="float")
    choice: tuple[Value, ...] | None = None
    step: Annotated[Finite, Field(gt=0)] | None = None
    log: bool = False

    @property
    def bounds(self) -> tuple[Number | str, Number | str]:
        """Smallest and largest value, or the fields that give them; of numeric dimensions."""
        bounds = self.float_bounds if self.int_bounds is None else self.int_bounds
        assert bounds is not None
        return bounds

    def needs(self) -> list[str]:
        """Fields that the bounds name."""
        return [] if self.choice else [end for end in self.bounds if isinstance(end, str)]

    def problem(self) -> str | None:
        """What is wrong with the dimension by itself, with the remedy."""
        kinds = [kind for kind in (self.int_bounds, self.float_bounds, self.choice) if kind]
        if len(kinds) != 1:
            return "give exactly one of int: [low, high], float: [low, high], choice: [...]"
        if self.log and self.step is not None:
            return "log and step exclude each other: drop one"
        if self.choice:
            return "a choice has no step and no log: drop them" if self.step or self.log else None
        if self.int_bounds and self.step is not None and self.step != int(self.step):
            return f"step={self.step} of an int must be whole"
        low, high = self.bounds
        if self.log and not isinstance(low, str) and low <= 0:
            return f"low={low} must be above 0 for log"
        if isinstance(low, str) or isinstance(high, str):
            return None
        return f"[{low}, {high}] is empty: put the smaller bound first" if low > high else None

    def bounds_with(self, other: Dimension) -> bool:
        """Whether values of this dimension can be bounds of `other`."""
        if not self.choice:
            return bool(self.int_bounds) or not other.int_bounds
        kinds = (int,) if other.int_bounds else (int, float)
        return all(isinstance(v, kinds) and not isinstance(v, bool) for v in self.choice)

    def draw(self, trial: Drawer, name: str, drawn: Mapping[str, Any]) -> Any:
        """A value for field `name`, given those of the fields that the bounds name."""
        if self.choice:
            return trial.suggest_categorical(name, list(self.choice))
        low, high = self._resolved(drawn)
        if self.int_bounds:
            return trial.suggest_int(name, low, high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, low, high, step=self.step, log=self.log)

    def contains(self, value: Any, given: Mapping[str, Any]) -> bool:
        """Whether `value` can be drawn, given the fields that the bounds name."""
        if self.choice:
            return value in self.choice
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.int_bounds and not float(value).is_integer():
            return False
        low, high = self._resolved(given)
        if not low <= value <= high:
            return False
        steps = (value - low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def values(self, space: SearchSpace) -> list[Any] | None:
        """All values that it can have in `space`; None for a continuous range."""
        if self.choice:
            return list(self.choice)
        if self.float_bounds and not self.step:
            return None
        low, high = self.extremes(space)
        step = Decimal(str(self.step or 1))
        count = int((Decimal(str(high)) - Decimal(str(low))) // step) + 1
        kind = int if self.int_bounds else float
        return [kind(Decimal(str(low)) + step * number) for number in range(count)]

    def extremes(self, space: SearchSpace) -> tuple[Any, Any]:
        """Smallest and largest value that it can have in `space`."""
        if self.choice:
            numbers = [v for v in self.choice if not isinstance(v, str)]
            return min(numbers), max(numbers)
        low, high = (
            space.search[end].extremes(space)[place] if isinstance(end, str) else end
            for place, end in enumerate(self.bounds)
        )
        return low, high

    def _resolved(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Numeric bounds, given the fields that they name; the upper one a whole step away."""
        low, high = (values[end] if isinstance(end, str) else end for end in self.bounds)
        if self.step and low < high:
            # In decimals as Optuna does it, which otherwise warns and cuts each draw.
            exact_low, exact_high, step = (Decimal(str(x)) for x in (low, high, self.step))
            high = type(high)(exact_low + (exact_high - exact_low) // step * step)
        return low, high

    def __str__(self) -> str:
        if self.choice:
            return "one of " + ", ".join(map(str, self.choice))
        low, high = self.bounds
        kind = "int" if self.int_bounds else "float"
        return f"{kind} in [{low}, {high}]" + (f" by {self.step:g}" if self.step else "")


class Drawer(Protocol):
    """What a dimension needs of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float: ...


class SchedulerConfig(_Part):
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


class SearchSpace(_Part):
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
    fixed: dict[str, Any] = {}
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
            values = dimension.values(self) or ()
        return frozenset(v for v in values if isinstance(v, int) and v > 0)

    @property
    def num_trunks(self) -> int | None:
        """How many instance stages the trials can have; None where there is no end of them."""
        counts = [
            None if (values := dimension.values(self)) is None else len(values)
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
            values = dimension.values(self)
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
