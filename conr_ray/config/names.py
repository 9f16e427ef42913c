"""Dotted names of fields, such as `neighborhood.k1`."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any

from conr_ray.config.tree import RunConfig, section_of, sections, unchosen
from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.method.frameworks import framework_config, framework_names

# What people write in a config because a search space has it.
_OF_SPACES = {
    "preset": "a config file is complete: give --preset NAME instead, with --set for what differs",
    "search": "a file with preset and search is a search space: give it to conr_ray.tune --space",
}
# Comparing longer ones takes long.
_LONGEST_NAME = 200


@functools.cache
def field_names(framework: str | None) -> list[str]:
    """Dotted names of the fields of every config and, if named, of a framework."""
    return [*_names_of_every_tree(), *(_names_of(framework) if framework else ())]


@functools.cache
def all_field_names() -> list[str]:
    """Dotted names of all fields, with those of all frameworks; imports torch."""
    own = (name for kind in framework_names() for name in _names_of(kind))
    return [*_names_of_every_tree(), *own]


@functools.cache
def _names_of_every_tree() -> list[str]:
    return [name for top in RunConfig.model_fields for name in _names_of(top)]


def _names_of(top: str) -> Iterable[str]:
    section = section_of(top)
    return [top] if section is None else [f"{top}.{leaf}" for leaf in section.model_fields]


def check_field(name: str) -> None:
    """Raise UserError, with the nearest names, if `name` is not a field of any tree."""
    if name in _names_of_every_tree():
        return
    if len(name) > _LONGEST_NAME:
        raise UserError(f"{short(name)}: no such field; see docs/config.md for the fields")
    top, _, leaf = name.partition(".")
    if top in framework_names() and leaf in framework_config(top).model_fields:
        return
    section = section_of(name)
    if section is not None:
        fields = ", ".join(section.model_fields)
        raise UserError(f"{name}: a section, not a field; choose one of its fields: {fields}")
    if name in _OF_SPACES:
        raise UserError(f"{name}: no such field of a run's config; {_OF_SPACES[name]}")
    near = _nearest_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "see docs/config.md for the fields"
    raise UserError(f"{short(name)}: no such field; {hint}")


def _nearest_names(name: str) -> list[str]:
    """Fields or sections with the names closest to `name`; the last word counts most."""
    section, _, leaf = name.rpartition(".")
    words = all_field_names()
    if not section:
        words = [*words, *sections(), *framework_names()]

    def likeness(field: str) -> float:
        its_section, _, its_leaf = field.rpartition(".")
        same = difflib.SequenceMatcher(None, leaf, its_leaf).ratio()
        home = difflib.SequenceMatcher(None, section, its_section).ratio() if section else 0.0
        return same + home / 2 if same >= 0.5 else 0.0

    scores = {word: likeness(word) for word in words}
    best = max(scores.values())
    return [word for word, score in scores.items() if score == best > 0]


def get_field(config: RunConfig, name: str) -> Any:
    """Value of the dotted field `name`.

    Raises UserError if there is no such field, or its framework is not the chosen one.
    """
    check_field(name)
    value: Any = config
    for part in name.split("."):
        if value is config and part in framework_names():
            chosen = config.model.framework
            if part != chosen:
                raise UserError(unchosen(name, part, chosen))
            value = config.framework
        else:
            value = getattr(value, part)
    return value


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Fields in which two configs differ, as `field: old -> new`."""
    names = field_names(old.model.framework)
    if old.model.framework != new.model.framework:
        names = ["model.framework", *_names_of_every_tree()]
    pairs = ((name, get_field(old, name), get_field(new, name)) for name in dict.fromkeys(names))
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]
