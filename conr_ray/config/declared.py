"""Values as their fields declare them.

The class called `2024` is text and the limit 2024 a number, although YAML writes both alike: what
an unquoted word is follows from the type of its field.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from conr_ray.config.tree import RunConfig, section_of
from conr_ray.config.yaml_text import Word
from conr_ray.method.frameworks import framework_config, framework_names


def typed(value: Any, kind: Any = Any) -> Any:
    """`value` with the words in it read as `kind`, a type or a model, declares.

    A word that `kind` does not allow becomes what YAML 1.2 takes it for; nothing is refused.
    """
    if isinstance(value, Word):
        return _read(value, list(_members(kind)))
    if isinstance(value, list):
        kinds = _item_kinds(kind)
        return [typed(v, kinds[min(i, len(kinds) - 1)]) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        kinds_by_key = _value_kinds(kind)
        rest = kinds_by_key.get(None, Any)
        return {key: typed(v, kinds_by_key.get(key, rest)) for key, v in value.items()}
    return value


def typed_tree(tree: Mapping[str, Any], *, trusted: bool = False) -> dict[str, Any]:
    """A config's tree with its words read; of a `trusted` one, the framework stays unimported."""
    own = [name for name in tree if name in framework_names() and not trusted]
    of_frameworks = {name: typed(tree[name], framework_config(name)) for name in own}
    return {**typed(tree, RunConfig), **of_frameworks}


def kind_of(field: str) -> Any:
    """The declared type of a dotted field; Any if there is no such field."""
    info = _info(field)
    return Any if info is None else info.annotation


def is_text(field: str) -> bool:
    """Whether all values of a field are text, or null."""
    return set(_members(kind_of(field))) <= {str, NoneType}


def is_list(field: str) -> bool:
    """Whether values of a field are lists."""
    return any(get_origin(member) is tuple for member in _members(kind_of(field)))


@functools.cache
def adapter(field: str) -> TypeAdapter[Any]:
    """Validates values of a dotted field, which must exist, by themselves."""
    info = _info(field)
    assert info is not None
    return TypeAdapter(info.rebuild_annotation())


def as_scalar(field: str, value: Any) -> Any:
    """`value` as a study can hold it: a list as JSON text, equal for equal lists."""
    if not isinstance(value, list | tuple) or not is_list(field):
        return value
    # What the field refuses is told where the space is checked.
    with suppress(ValidationError):
        value = adapter(field).validate_python(value)
    return json.dumps(value)


def from_scalar(field: str, value: Any) -> Any:
    """The inverse of `as_scalar`."""
    if not isinstance(value, str) or not is_list(field):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _info(field: Any) -> FieldInfo | None:
    if not isinstance(field, str):
        return None
    top, _, leaf = field.rpartition(".")
    section = section_of(top) if top else RunConfig
    return None if section is None else section.model_fields.get(leaf)


def _read(word: Word, members: list[Any]) -> Any:
    """A word as one of the members of a union."""
    value = word.value()
    words = [one for m in members if get_origin(m) is Literal for one in get_args(m)]
    is_text = str in members or word in words
    match value:
        case None:
            return str(word) if word and is_text and NoneType not in members else None
        case bool():
            return value if bool in members or Any in members else str(word)
        case int() | float():
            takes_numbers = int in members or float in members
            return value if takes_numbers or not is_text else str(word)
        case _:
            return value


def _members(kind: Any) -> Iterator[Any]:
    """The members of a union, without what annotates them."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _members(get_args(kind)[0])
    elif origin in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _item_kinds(kind: Any) -> list[Any]:
    """The types of a tuple's items; the last one holds for all further ones."""
    for member in _members(kind):
        if get_origin(member) is tuple:
            return [item for item in get_args(member) if item is not Ellipsis]
    return [Any]


def _value_kinds(kind: Any) -> dict[str | None, Any]:
    """The types of a mapping's values by key; None stands for all other keys."""
    for member in _members(kind):
        if get_origin(member) is dict:
            return {None: get_args(member)[1]}
        if isinstance(member, type) and issubclass(member, BaseModel):
            return {
                info.alias or name: info.annotation for name, info in member.model_fields.items()
            }
    return {}
