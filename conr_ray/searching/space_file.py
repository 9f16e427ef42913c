"""Read a search space, a YAML file or a mapping, and check it before anything runs.

A choice or bound may be written `$preset`, the preset's value of the field, so that one file fits
every preset.

    preset: digits
    search:
      schedule.group_start: {choice: [$preset, never]}
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from yaml.representer import RepresenterError

from conr_ray.config import (
    RunConfig,
    as_scalar,
    check_field,
    check_value,
    dump_yaml,
    from_scalar,
    get_field,
    load_preset,
    parse_yaml,
    read_yaml,
)
from conr_ray.errors import BadSetting, UserError
from conr_ray.fields import short, shown
from conr_ray.metric_names import (
    COST_METRICS,
    LABEL_FREE_METRICS,
    LABEL_FREE_SCORES,
    LABELLED_METRICS,
)
from conr_ray.searching.space import SearchSpace, ShareDrawer, typed_space
from conr_ray.searching.space_errors import reason

_DRAWS_CHECKED = 64
_PRESET_VALUE = "$preset"
# What is kept for each of them takes space on disk; a list of so many takes none to speak of.
_MOST_GROUP_STARTS = 10_000
_MOST_EXCHANGES = 10_000


def load_space(
    space: str | Path | Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    preset: str | None = None,
    defaults: Callable[[str], Mapping[str, Any]] | None = None,
) -> SearchSpace:
    """A search space, checked.

    Args:
        space: a YAML file, or a mapping of the same form.
        fixed: added to the space's fixed fields. For a searched field with `$preset`, the value
            that replaces it.
        preset: the preset to vary, instead of the space's.
        defaults: for the name of the preset, fields that are fixed too, where the space neither
            fixes nor searches them.

    Raises:
        UserError: the space cannot be read, a field is unknown, both searched and fixed or has an
            empty range, or a point of the space is not a valid run.
    """
    source = "space" if isinstance(space, Mapping) else f"space {space}"
    tree = _read(space)
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: a space is a mapping with preset and search")
    tree = typed_space(tree)
    own, searched = tree.get("fixed") or {}, tree.get("search")
    if not isinstance(own, Mapping):
        raise UserError(f"{source}: fixed={shown(own)} is not a mapping of fields to values")
    if preset is not None:
        tree["preset"] = preset
    below: Mapping[str, Any] = {}
    if defaults is not None and isinstance(tree.get("preset"), str):
        below = defaults(tree["preset"])
    if isinstance(searched, Mapping):
        below = {name: value for name, value in below.items() if name not in searched}
    tree["fixed"] = {**below, **own, **(fixed or {})}
    tree = _with_preset_values(tree)
    try:
        read = SearchSpace.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {reason(error)}") from None
    _check(read)
    return read


def _read(space: str | Path | Mapping[str, Any]) -> Any:
    """The tree of a space; that of a mapping is what a file of it would hold."""
    if not isinstance(space, Mapping):
        return read_yaml(space, "space", "see search_spaces/")
    try:
        return parse_yaml(dump_yaml(dict(space)), "space")
    except RepresenterError as error:
        _, value = error.args
        raise UserError(
            f"space: {shown(value)} is of type {type(value).__name__}: give numbers, words, lists "
            "and dicts of Python"
        ) from None


def _with_preset_values(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace each `$preset` in a space's tree by its value; trees of other shapes are unchanged.

    A fixed value of such a field replaces the preset's, and the field is searched, not fixed.
    """
    search, preset = tree.get("search"), tree.get("preset")
    if not isinstance(search, Mapping) or not isinstance(preset, str):
        return tree
    searched, fixed, own = dict(search), dict(tree["fixed"]), {}
    for name, dimension in search.items():
        if not isinstance(dimension, Mapping) or not any(map(_names_preset, dimension.values())):
            continue
        value = as_scalar(name, get_field(load_preset(preset), name))
        if name in fixed:
            value = own[name] = as_scalar(name, fixed.pop(name))
        searched[name] = {key: _replaced(key, part, value) for key, part in dimension.items()}
    tree = {**tree, "search": searched, "fixed": fixed}
    first = tree.get("first")
    if own and first is None and tree.get("sampler") != "grid":
        tree["first"] = [own]
    elif own and isinstance(first, list):
        tree["first"] = [{**own, **one} if isinstance(one, Mapping) else one for one in first]
    return tree


def _names_preset(part: Any) -> bool:
    return isinstance(part, list) and _PRESET_VALUE in part


def _replaced(key: str, part: Any, value: Any) -> Any:
    """Choices or bounds with `value` for `$preset`, without duplicate choices."""
    if not _names_preset(part):
        return part
    if key == "choice" and value in part:
        return [one for one in part if one != _PRESET_VALUE]
    return [value if one == _PRESET_VALUE else one for one in part]


def _check(space: SearchSpace) -> None:
    _check_metrics(space)
    if not space.search:
        raise UserError("search: no field is searched: add one, such as neighborhood.k1")
    for name, dimension in space.search.items():
        check_field(name)
        if name in space.fixed:
            raise UserError(
                f"{name} is both fixed ({short(str(space.fixed[name]))}) and searched: drop one "
                "of the two"
            )
        if problem := dimension.problem():
            raise UserError(f"search.{name}: {problem}")
    for name, dimension in space.search.items():
        for needed in dimension.needs():
            if needed not in space.search:
                raise UserError(
                    f"search.{name}: its bound {short(needed)} is not searched: give a number "
                    "instead"
                )
            if not space.search[needed].bounds_with(dimension):
                raise UserError(
                    f"search.{name}: its bound {needed} is {space.search[needed]}: give a number "
                    "instead"
                )
    _check_ranges(space)
    _check_first(space)
    check_points(space)
    _check_group_starts(space)
    latest = max(space.group_starts, default=0)
    if (space.asked_grace or latest) < latest and "schedule.group_start" in space.search:
        raise UserError(
            f"scheduler.grace_epochs={space.asked_grace} would compare trials before and after "
            f"their group_start: raise it above {latest}, or leave it out"
        )
    if "neighbor_purity" in space.metrics and not space.always_groups:
        raise UserError(
            "metric=neighbor_purity: a run without a group stage does not report it: choose nmi, "
            "or drop schedule.group_start=never"
        )
    if (space.asked_grace or 0) >= space.config().schedule.epochs:
        raise UserError(
            f"scheduler.grace_epochs={space.asked_grace} leaves nothing to stop or exchange: lower "
            f"it below schedule.epochs={space.config().schedule.epochs}"
        )
    _check_scored(space)
    if space.sampler == "grid":
        space.grid()
    if space.scheduler is not None and space.scheduler.is_population:
        _check_population(space)


def _check_ranges(space: SearchSpace) -> None:
    """Raise UserError if a field does not allow a choice or a bound, or has too many steps."""
    for name in space.order:
        dimension = space.search[name]
        for value in dimension.known_values:
            try:
                check_value(name, from_scalar(name, value))
            except UserError as error:
                raise UserError(f"search.{error}") from None
        if dimension.is_too_fine(space.search):
            raise UserError(f"search.{name}: step={dimension.step}: too small for the range")


def _check_group_starts(space: SearchSpace) -> None:
    dimension = space.search.get("schedule.group_start")
    count = dimension.count(space.search) if dimension else None
    if count is not None and count > _MOST_GROUP_STARTS:
        raise UserError(
            f"search.schedule.group_start: {count} values, and a trunk keeps a checkpoint for "
            "each: give a step"
        )


def _check_scored(space: SearchSpace) -> None:
    """Raise UserError if early stopping would see no label-free score before the last epoch."""
    config, grace = space.config(), space.grace_epochs
    every, epochs = config.evaluation.every, config.schedule.epochs
    scores = [metric for metric in space.metrics if metric in LABEL_FREE_SCORES]
    stops = space.scheduler is not None and not space.scheduler.is_population
    if stops and scores and max(1, -(-grace // every)) * every >= epochs:
        raise UserError(
            f"metric={scores[0]}: no epoch between {grace} and {epochs} has it, so the scheduler "
            f"has nothing to go by: lower evaluation.every={every}"
        )


def _check_metrics(space: SearchSpace) -> None:
    known = (*LABELLED_METRICS, *LABEL_FREE_METRICS, *COST_METRICS)
    for metric in space.metrics:
        if metric not in ("auto", *known):
            raise UserError(f"metric={short(metric)}: unknown; choose from {', '.join(known)}")
    if len(set(space.metrics)) < len(space.metrics):
        raise UserError(f"metric={shown(list(space.metrics))} has a duplicate: drop it")
    if len(space.directions) != len(space.metrics):
        raise UserError("mode: give one for each metric, or leave it out")
    if len(space.metrics) > 1 and space.scheduler is not None:
        raise UserError(
            f"scheduler {space.scheduler.kind} needs a single metric: leave it out, or give one "
            "metric"
        )
    if len(space.metrics) > 1 and space.sampler == "cmaes":
        raise UserError("sampler cmaes needs a single metric: choose tpe, gp, random or grid")


def _check_population(space: SearchSpace) -> None:
    # Imports torch, which reading other spaces does not need.
    from conr_ray.engine.schedule import Schedule
    from conr_ray.engine.training_state import may_change

    assert space.scheduler is not None
    kind = space.scheduler.kind
    if space.trials < 2:
        raise UserError(f"scheduler {kind} needs a population: set trials to 2 or more")
    for name in space.search:
        if not may_change(name):
            raise UserError(
                f"search.{name} cannot change during a run, which scheduler {kind} requires: fix "
                "it, or choose asha"
            )
    if "sampler" in space.model_fields_set:
        raise UserError(
            f"sampler {space.sampler}: scheduler {kind} draws its first points at random: leave "
            "it out"
        )
    if len(space.exchanges) > _MOST_EXCHANGES:
        raise UserError(
            f"scheduler {kind} would exchange states {len(space.exchanges)} times: raise "
            "interval_epochs"
        )
    config = space.config()
    for epoch in space.exchanges:
        if not Schedule(config, 1).evaluated(epoch - 1):
            raise UserError(
                f"scheduler {kind}: no evaluation after epoch {epoch}: make grace_epochs and "
                f"interval_epochs multiples of evaluation.every={config.evaluation.every}"
            )


def _check_first(space: SearchSpace) -> None:
    for point in space.first_points():
        for name, value in point.items():
            check_field(name)
            if name not in space.search:
                told = short(str(value))
                raise UserError(f"first: {name}={told} is not searched: move it to fixed")
        for name in space.order:
            if not space.search[name].contains(point[name], point):
                told = short(str(point[name]))
                raise UserError(
                    f"search.{name}: the first trial's {told} is not {space.search[name]}: "
                    "widen the range, or give first: [{...}]"
                )
        space.config(point)


def check_points(
    space: SearchSpace, check: Callable[[RunConfig], object] = lambda config: None
) -> None:
    """Check that many corners and random points are valid, so that no trial fails hours later.

    Raises:
        UserError: a point is not a valid run, or `check` raised it.
        BadSetting: as `check` raises it, which is not the space's fault.
    """
    numbers = random.Random(0)
    shares: list[Callable[[], float]] = [lambda: 0.0, lambda: 1.0]
    shares += [numbers.random, lambda: float(numbers.random() < 0.5)] * (_DRAWS_CHECKED // 2)
    for share in shares:
        try:
            check(space.config(space(ShareDrawer(share))))
        except BadSetting:
            raise
        except UserError as error:
            raise UserError(f"the space has points that cannot run: {error}") from None
