"""What is wrong with the tree of a search space, in one line: place, value and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from conr_ray.fields import short, shown
from conr_ray.searching.dimension import Dimension
from conr_ray.searching.space import SchedulerConfig, SearchSpace

_DIMENSION = "{int: [low, high]}, {float: [low, high]} or {choice: [...]}"
_SEARCH = "search: {neighborhood.k1: {int: [5, 20]}}"
_MISSING = {
    ("preset",): "missing: name the preset to vary, such as preset: digits",
    ("search",): f"missing: give the fields to search, such as {_SEARCH}",
}


def reason(error: ValidationError) -> str:
    """Name, reason and remedy of the first thing that is wrong with a tree.

    Unknown keys come first: one that is missing may have been written in another way.
    """
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place, value, remedy = first["loc"], first["input"], first["msg"]
    bounds = place[0] == "search" and place[2:3] in (("int",), ("float",))
    if first["type"] == "extra_forbidden":
        remedy = _unknown(place)
    elif place in _MISSING and first["type"] == "missing":
        remedy = _MISSING[place]
    elif place == ("search",):
        remedy = f"input should be a mapping of fields, such as {_SEARCH}"
    elif place[0] == "search" and len(place) == 2:
        remedy = f"{shown(value)} is no dimension: write {_written(value)}"
    elif bounds and (len(place) == 3 or first["type"] in ("missing", "too_long")):
        place = place[:3]
        remedy = f"{shown(value)}: bounds are two: [low, high]"
    elif "choice" in place:
        remedy = "a choice is a list of values of its field"
    elif place[:1] == ("sampler",) or place[-1:] == ("kind",):
        remedy = f"{shown(value)}: {remedy.removeprefix('Input should be ')}"
    elif place[:1] == ("mode",):
        # A single word counts as a list of one.
        place = place[:1]
    return f"{short('.'.join(map(str, place)))}: {remedy[0].lower()}{remedy[1:]}"


def _unknown(place: Sequence[int | str]) -> str:
    """What is said of a key that the part of a space at `place` does not have."""
    parts: dict[str, type[BaseModel]] = {"search": Dimension, "scheduler": SchedulerConfig}
    part = SearchSpace if len(place) == 1 else parts.get(str(place[0]))
    keys = [field.alias or name for name, field in part.model_fields.items()] if part else []
    near = difflib.get_close_matches(str(place[-1])[:80].lower(), keys, n=1)
    if near:
        return f"no such key; did you mean {near[0]}?"
    return f"no such key; choose from {', '.join(keys)}"


def _written(value: Any) -> str:
    """A dimension as it may have been meant by `value`."""
    if isinstance(value, list | tuple) and value:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if numbers and len(value) == 2:
            kind = "int" if all(isinstance(v, int) for v in value) else "float"
            return f"{{{kind}: {shown(list(value))}}}, or {{choice: [...]}}"
        return short(f"{{choice: [{', '.join(map(str, value))}]}}")
    return _DIMENSION
