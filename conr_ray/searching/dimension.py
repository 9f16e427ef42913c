"""The values that a searched field can take, and how Optuna draws from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from conr_ray.fields import short

# Values of a choice as a study holds them: lists are text, see `config.as_scalar`.
Value = bool | int | float | str | None
Number = int | float
Finite = Annotated[float, Field(allow_inf_nan=False)]


class SpacePart(BaseModel):
    """A part of a space file; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Dimension(SpacePart):
    """The values of one field: exactly one of `int`, `float` and `choice`."""

    int_bounds: tuple[int | str, int | str] | None = Field(None, alias="int")
    float_bounds: tuple[Finite | str, Finite | str] | None = Field(None, alias="float")
    choice: tuple[Value, ...] | None = None
    step: Annotated[Finite, Field(gt=0)] | None = None
    log: bool = False

    @property
    def bounds(self) -> tuple[Number | str, Number | str]:
        """Smallest and largest value of a numeric dimension, or the fields that give them."""
        bounds = self.float_bounds if self.int_bounds is None else self.int_bounds
        assert bounds is not None
        return bounds

    @property
    def known_values(self) -> list[Value]:
        """The choices, or the bounds that are numbers."""
        if self.choice:
            return list(self.choice)
        return [end for end in self.bounds if not isinstance(end, str)]

    def needs(self) -> list[str]:
        """Fields that the bounds name."""
        return [] if self.choice else [end for end in self.bounds if isinstance(end, str)]

    def problem(self) -> str | None:
        """What is wrong with this dimension and how to fix it, else None."""
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
        """A value for field `name`, given the values of the fields in its bounds."""
        if self.choice:
            return trial.suggest_categorical(name, list(self.choice))
        low, high = self._resolved(drawn)
        if self.int_bounds:
            return trial.suggest_int(name, low, high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, low, high, step=self.step, log=self.log)

    def contains(self, value: Any, given: Mapping[str, Any]) -> bool:
        """Whether `value` can be drawn, given the values of the fields in the bounds."""
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

    def is_too_fine(self, others: Mapping[str, Dimension]) -> bool:
        """Whether it has more steps than numbers can tell apart, given the space's fields."""
        if self.choice or not (self.int_bounds or self.step):
            return False
        low, high = self.extremes(others)
        return bool(high - low > 2**53 * (self.step or 1))

    def count(self, others: Mapping[str, Dimension]) -> int | None:
        """Number of possible values, given the space's fields; None for a continuous range."""
        if self.choice:
            return len(self.choice)
        if self.float_bounds and not self.step:
            return None
        low, high = (Decimal(str(end)) for end in self.extremes(others))
        return max(0, int((high - low) // Decimal(str(self.step or 1))) + 1)

    def values(self, others: Mapping[str, Dimension]) -> Sequence[Any] | None:
        """All possible values, given the space's fields; None for a continuous range.

        Takes memory for each of them, except for whole numbers.
        """
        count = self.count(others)
        if self.choice or count is None:
            return self.choice
        low, _ = self.extremes(others)
        if self.int_bounds:
            step = int(self.step or 1)
            return range(low, low + count * step, step)
        first, exact_step = Decimal(str(low)), Decimal(str(self.step))
        return [float(first + exact_step * number) for number in range(count)]

    def extremes(self, others: Mapping[str, Dimension]) -> tuple[Any, Any]:
        """Smallest and largest possible number, given the space's fields."""
        if self.choice:
            numbers = [v for v in self.choice if isinstance(v, int | float)]
            return min(numbers), max(numbers)
        low, high = (
            others[end].extremes(others)[place] if isinstance(end, str) else end
            for place, end in enumerate(self.bounds)
        )
        return low, high

    def scaled(self, value: Any, factor: float, given: Mapping[str, Any]) -> Any:
        """A number near `value`: times `factor`, at least a step away, within the bounds."""
        low, high = self._resolved(given)
        step = Decimal(str(self.step or (1 if self.int_bounds else 0)))
        if not step:
            return min(max(value * factor, low), high)
        first, old = Decimal(str(low)), Decimal(str(value))
        steps = round((old * Decimal(str(factor)) - first) / step)
        if first + steps * step == old:
            steps += 1 if factor > 1 else -1
        moved = type(low)(first + max(0, steps) * step)
        return min(max(moved, low), high)

    def in_unit_cube(self, value: Any, others: Mapping[str, Dimension]) -> list[float]:
        """`value` scaled to [0, 1] by the full range; a choice is one-hot encoded."""
        if self.choice:
            return [float(value == one) for one in self.choice]
        low, high = self.extremes(others)
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return [(value - low) / (high - low) if high > low else 0.0]

    def _resolved(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Numeric bounds, given the fields that they name; the upper one is on a step."""
        low, high = (values[end] if isinstance(end, str) else end for end in self.bounds)
        if self.step and low < high:
            # In decimals as in Optuna, which otherwise warns and clips each draw.
            exact_low, exact_high, step = (Decimal(str(x)) for x in (low, high, self.step))
            high = type(high)(exact_low + (exact_high - exact_low) // step * step)
        return low, high

    def __str__(self) -> str:
        if self.choice:
            words = ("null" if value is None else str(value) for value in self.choice)
            return short("one of " + ", ".join(words))
        low, high = self.bounds
        kind = "int" if self.int_bounds else "float"
        return short(f"{kind} in [{low}, {high}]") + (f" by {self.step:g}" if self.step else "")


class Drawer(Protocol):
    """The methods of an Optuna trial that a dimension uses."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """One of the choices."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """A whole number from `low` to `high`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        """A number from `low` to `high`."""
