"""A search space: a YAML file read into a tree that Optuna can draw from.

    preset: digits                       # the preset to vary
    metric: nmi                          # maximised (minimised with mode: min); may be several
    trials: 8
    fixed: {schedule.epochs: 60}         # fields set for all trials
    search:                              # searched fields
      neighborhood.k1: {int: [5, 40], log: true}
      neighborhood.k2: {int: [1, neighborhood.k1]}
      boundary.initial_fraction: {float: [0.6, 1.0], step: 0.05}
      neighborhood.kind: {choice: [contextual, euclidean]}

A bound may name another searched field: the draw then stays within that field's value. A choice
has values of its field, which may be lists or null; a point holds a list as its JSON text, as a
study does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from conr_ray.config import (
    RunConfig,
    as_scalar,
    from_scalar,
    get_field,
    kind_of,
    load_preset,
    typed,
)
from conr_ray.engine.trunk_fields import shapes_trunk
from conr_ray.errors import UserError
from conr_ray.metric_names import MADE_SMALL
from conr_ray.searching.dimension import Dimension, Drawer, SpacePart

Direction = Literal["max", "min"]
_LARGEST_GRID = 100_000


class SchedulerConfig(SpacePart):
    """Early stopping, or a population. Its clock starts at the latest start of a group stage.

    It counts epochs trained, so trials that fork at different epochs are compared at the same point
    of the learning rate schedule, and none before its group stage.
    """

    kind: Literal["asha", "hyperband", "median", "pbt", "pb2"] = "asha"
    grace_epochs: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="no trial is stopped, and no state exchanged, before this epoch; if unset, a "
        "quarter of the epochs after the latest group_start",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(2, description="of asha and hyperband")
    interval_epochs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of pbt and pb2, between exchanges; if unset, as for grace_epochs"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_its_kind(cls, tree: Any) -> Any:
        return {"kind": tree} if isinstance(tree, str) else tree

    @property
    def is_population(self) -> bool:
        """Whether trials copy each other's state instead of being stopped."""
        return self.kind in ("pbt", "pb2")


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_or_list(values: Sequence[str] | None) -> str | list[str] | None:
    if values is None:
        return None
    return values[0] if len(values) == 1 else list(values)


# A word in YAML, or a list of them.
_Metrics = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    PlainSerializer(_one_or_list),
]
_Modes = Annotated[
    tuple[Direction, ...], BeforeValidator(_one_or_more), PlainSerializer(_one_or_list)
]


def typed_space(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a space with its words read as their fields declare, and lists to draw as text.

    Parts of another shape are left for pydantic to refuse.
    """

    def point(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: as_scalar(name, typed(v, kind_of(name))) for name, v in values.items()}

    def dimension(name: str, part: Any) -> Any:
        if not isinstance(part, Mapping) or not isinstance(part.get("choice"), list | tuple):
            return part
        kind = kind_of(name)
        return {**part, "choice": [as_scalar(name, typed(v, kind)) for v in part["choice"]]}

    read = dict(tree)
    if isinstance(fixed := tree.get("fixed"), Mapping):
        read["fixed"] = {name: typed(value, kind_of(name)) for name, value in fixed.items()}
    if isinstance(search := tree.get("search"), Mapping):
        read["search"] = {name: dimension(name, part) for name, part in search.items()}
    if isinstance(first := tree.get("first"), list | tuple):
        read["first"] = [point(values) for values in first]
    whole: dict[str, Any] = typed(read, SearchSpace)
    return whole


class SearchSpace(SpacePart):
    """A search: the preset to vary, the searched fields and how trials are judged.

    Called with an Optuna trial, it draws a point: a mapping from dotted fields to values.
    """

    preset: str
    metrics: _Metrics = Field(
        ("auto",),
        alias="metric",
        description="auto is nmi with labels, else neighbor_consistency; of several, the first "
        "is the main one",
    )
    modes: _Modes | None = Field(None, alias="mode", description="max or min for each metric")
    trials: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    fixed: dict[str, Any] = Field({})
    search: dict[str, Dimension]
    first: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = Field(
        None, description="points tried first; if unset, the preset's values (none for a grid)"
    )
    sampler: Literal["tpe", "cmaes", "gp", "random", "grid"] = "tpe"
    scheduler: SchedulerConfig | None = SchedulerConfig()

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, tree: Any) -> Any:
        return typed_space(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="before")
    @classmethod
    def _stop_nothing_by_several_metrics(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and "scheduler" not in tree:
            metric = tree.get("metric")
            if isinstance(metric, list | tuple) and len(metric) > 1:
                return {**tree, "scheduler": None}
        return tree

    @property
    def metric(self) -> str:
        """The metric, or the first of several."""
        return self.metrics[0]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Whether each metric is made large or small."""
        natural = tuple[Direction, ...]("min" if m in MADE_SMALL else "max" for m in self.metrics)
        return self.modes or natural

    @property
    def direction(self) -> Direction:
        """Direction of the metric, or of the first of several."""
        return self.directions[0]

    @property
    def order(self) -> list[str]:
        """Searched fields, each after those named in its bounds."""
        ordered: list[str] = []
        while len(ordered) < len(self.search):
            ready = [
                name
                for name, dimension in self.search.items()
                if name not in ordered and set(dimension.needs()) <= set(ordered)
            ]
            if not ready:
                stuck = next(name for name in self.search if name not in ordered)
                raise UserError(f"search.{stuck}: circular bounds: replace one by a number")
            ordered += ready
        return ordered

    @property
    def clock_start(self) -> int:
        """Epochs before which early stopping compares nothing: the latest start of a group stage.

        0 if there is no group stage, or if the space sets grace_epochs no later than that.
        """
        latest, asked = max(self.group_starts, default=0), self.asked_grace
        return 0 if asked and asked <= latest else latest

    @property
    def asked_grace(self) -> int | None:
        """The grace_epochs set in the space."""
        return self.scheduler.grace_epochs if self.scheduler else None

    @property
    def grace_epochs(self) -> int:
        """Epochs that every trial trains."""
        return self.asked_grace or self.clock_start + self._quarter

    @property
    def exchanges(self) -> Sequence[int]:
        """Epochs after which members of a population are compared; empty without one."""
        if self.scheduler is None or not self.scheduler.is_population:
            return ()
        interval = self.scheduler.interval_epochs or self._quarter
        return range(self.grace_epochs, self.config().schedule.epochs, interval)

    @property
    def _quarter(self) -> int:
        """A quarter of the epochs after the clock's start."""
        return max(1, (self.config().schedule.epochs - self.clock_start) // 4)

    @property
    def group_starts(self) -> frozenset[int]:
        """All epochs at which a trial may begin its group stage."""
        return frozenset(v for v in self._group_start_values if isinstance(v, int) and v > 0)

    @property
    def always_groups(self) -> bool:
        """Whether every trial has a group stage."""
        return "never" not in self._group_start_values

    @property
    def _group_start_values(self) -> Sequence[Any]:
        dimension = self.search.get("schedule.group_start")
        if dimension is None:
            return [self.config().schedule.group_start]
        return dimension.values(self.search) or ()

    @property
    def num_trunks(self) -> int | None:
        """Number of instance stages that trials can share; None if unlimited.

        0 if a population exchanges states before they end.
        """
        if self.exchanges and self.exchanges[0] <= max(self.group_starts, default=0):
            return 0
        counts = [d.count(self.search) for name, d in self.search.items() if shapes_trunk(name)]
        return None if None in counts else math.prod(count for count in counts if count)

    @property
    def why_no_trunks(self) -> str | None:
        """Why trials share no instance stage; None if they do."""
        if self.num_trunks is None:
            return "a searched field of the instance stage has unlimited values"
        if self.num_trunks == 0:
            return "states are exchanged before the group stage"
        return None if self.group_starts else "no trial has an instance and a group stage"

    @property
    def most_trials(self) -> int | None:
        """Number of points to try in a grid; None for other samplers."""
        if self.sampler != "grid":
            return None
        return math.prod(len(values) for values in self.grid().values()) + len(self.first or ())

    def grid(self) -> dict[str, list[Any]]:
        """All values of every searched field.

        Raises:
            UserError: a field has unlimited values, or values that depend on another field, or
                there are too many points.
        """
        num_points = 1
        for name, dimension in self.search.items():
            count = dimension.count(self.search)
            if count is None or dimension.needs():
                raise UserError(
                    f"search.{name}: sampler grid needs a choice, or numeric bounds with a step"
                )
            num_points *= count
        if num_points > _LARGEST_GRID:
            raise UserError(
                f"sampler grid would try {num_points} points, more than {_LARGEST_GRID}: take "
                "larger steps, or another sampler"
            )
        return {name: list(d.values(self.search) or ()) for name, d in self.search.items()}

    def __call__(self, trial: Drawer) -> dict[str, Any]:
        """Draw a point."""
        drawn: dict[str, Any] = {}
        for name in self.order:
            drawn[name] = self.search[name].draw(trial, name, drawn)
        return drawn

    def first_points(self) -> list[dict[str, Any]]:
        """The complete points tried first; for a grid without any, an example point."""
        preset = load_preset(self.preset)
        own = {name: as_scalar(name, get_field(preset, name)) for name in self.search}
        if self.sampler == "grid" and self.first is None:
            # A grid has its own points, which may not include the preset's values.
            for name, values in self.grid().items():
                own[name] = own[name] if own[name] in values else values[0]
        return [{**own, **point} for point in (self.first if self.first is not None else ({},))]

    def drawn(self, numbers: random.Random) -> dict[str, Any]:
        """A random point."""
        return self(ShareDrawer(numbers.random))

    def near(
        self, point: Mapping[str, Any], numbers: random.Random, *, redrawn: float
    ) -> dict[str, Any]:
        """A point with numbers a fifth larger or smaller; a share of fields is redrawn."""
        found: dict[str, Any] = {}
        for name in self.order:
            dimension = self.search[name]
            if numbers.random() < redrawn:
                found[name] = dimension.draw(ShareDrawer(numbers.random), name, found)
            elif dimension.choice:
                found[name] = point[name]
            else:
                factor = numbers.choice((0.8, 1.2))
                found[name] = dimension.scaled(point[name], factor, found)
        return found

    def in_unit_cube(self, point: Mapping[str, Any]) -> list[float]:
        """A point as numbers in [0, 1], in the same order for all points."""
        parts = (d.in_unit_cube(point[name], self.search) for name, d in self.search.items())
        return [number for part in parts for number in part]

    def config(self, point: Mapping[str, Any] | None = None) -> RunConfig:
        """The run config at a point, by default the first point."""
        point = self.first_points()[0] if point is None else point
        values = {name: from_scalar(name, value) for name, value in point.items()}
        return load_preset(self.preset, {**self.fixed, **values})


class ShareDrawer:
    """Draws the value at a fraction of each range; 0 and 1 are its ends."""

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """The choice at the next share of their list."""
        return choices[min(int(self._share() * len(choices)), len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """As `suggest_float`, rounded."""
        return round(self.suggest_float(name, low, high, step=step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        """The number at the next share of the way from `low` to `high`.

        Raises:
            UserError: the bounds leave nothing between them.
        """
        if low > high:
            raise UserError(f"search.{name} would be between {low} and {high}: change its bounds")
        share = self._share()
        if log:
            exponent = math.log(low) + share * (math.log(high) - math.log(low))
            return min(max(math.exp(exponent), low), high)
        if step is None:
            return low + share * (high - low)
        exact_low, exact_step = Decimal(str(low)), Decimal(str(step))
        num_steps = int((Decimal(str(high)) - exact_low) // exact_step)
        return float(exact_low + min(int(share * (num_steps + 1)), num_steps) * exact_step)
