"""Build a run's config from a tree and overrides.

Every message is one line: the field, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from conr_ray.config.declared import adapter, typed_tree
from conr_ray.config.names import check_field, field_names
from conr_ray.config.samples import ViewsConfig
from conr_ray.config.tree import RunConfig, marked_fields, sections
from conr_ray.errors import UserError
from conr_ray.fields import Section, short, shown
from conr_ray.method.backbone_names import embeds_once, is_timm
from conr_ray.method.frameworks import framework_config, framework_names

_FRAMEWORK = "model.framework"
# Fields whose value decides which others are used.
_CHOOSERS = ("data.source", "model.backbone", "model.train")


def build(
    tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, trusted: bool = False
) -> RunConfig:
    """The validated config of a nested mapping, with dotted overrides on top.

    If an override chooses another source, backbone or framework, the tree's fields for the previous
    one are dropped; for a model of timm, so are the sizes of views.

    Args:
        tree: sections by name; it may have sections of several frameworks. Its words, if it was
            read from YAML, are taken as their fields declare.
        overrides: values by dotted name.
        trusted: the tree was validated when it was written; its framework's section is validated,
            and torch imported, only on first use.

    Raises UserError with one line: the field, the value and the remedy.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"a config is a mapping of sections, not {type(tree).__name__}")
    merged = typed_tree(tree, trusted=trusted)
    _check_sections(merged)
    overrides = overrides or {}
    for name in overrides:
        check_field(name)
    _leave_out(merged, overrides)
    for name, value in overrides.items():
        section, _, leaf = name.rpartition(".")
        (merged.setdefault(section, {}) if section else merged)[leaf] = value
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(explained(error)) from None
    framework = config.model.framework
    touched = {name.partition(".")[0] for name in overrides}
    if not trusted or framework in touched or _FRAMEWORK in overrides:
        _ = config.framework
    return config


def override(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """`config` with dotted fields replaced, validated anew."""
    return build(config.written_tree(), overrides, trusted=True)


def _check_sections(tree: Mapping[str, Any]) -> None:
    for name, fields in tree.items():
        if isinstance(fields, dict):
            continue
        kind: type[Section] | None = sections().get(name)
        if kind is None and name in framework_names():
            kind = framework_config(name)
        if kind is not None:
            example = next(iter(kind.model_fields))
            raise UserError(
                f"{name}={shown(fields)}: a section, not a value; write {{{example}: ...}}"
            )


def _leave_out(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Remove from `tree` the fields that only the choices replaced by `overrides` use."""

    def choice(chooser: str) -> tuple[Any, Any]:
        section, _, leaf = chooser.partition(".")
        default = sections()[section].default_of(leaf)
        before = tree.get(section, {}).get(leaf, default)
        return before, overrides.get(chooser, before)

    before, now = choice(_FRAMEWORK)
    if now != before:
        tree.pop(before, None)
    choices = {chooser: choice(chooser) for chooser in _CHOOSERS}
    before, now = (is_timm(str(backbone)) for backbone in choices["model.backbone"])
    if now and not before:
        # Its own size is better than that of another network's images.
        for leaf in ("size", "sizes"):
            tree.get("views", {}).pop(leaf, None)
    for name, mark in marked_fields():
        if mark.used_by is None:
            continue
        before, now = choices[mark.used_by[0]]
        if mark.is_used(before) and not mark.is_used(now):
            section, _, leaf = name.partition(".")
            tree.get(section, {}).pop(leaf, None)
    names = ("model.backbone", "model.train", "model.init")
    embedded_before, embedded_now = (
        embeds_once(str(backbone), train, init)
        for backbone, train, init in zip(*map(choice, names), strict=True)
    )
    if embedded_now and not embedded_before:
        num_views = choice("data.embedded_views")[1]
        unused = ViewsConfig.unused_when_embedded(num_views if isinstance(num_views, int) else 0)
        for leaf in unused:
            tree.get("views", {}).pop(leaf, None)


def check_value(field: str, value: Any) -> None:
    """Raise UserError if a dotted field does not allow `value`, whatever the other fields are."""
    check_field(field)
    try:
        adapter(field).validate_python(value)
    except ValidationError as error:
        raise UserError(explained(error, *field.split("."))) from None


def explained(error: ValidationError, *above: str) -> str:
    """The first error in one line; `above` names the part that was validated, if not the tree."""
    first, *others = error.errors()
    # Union members add their own names to the location; keep field names only.
    known = field_names(above[0] if above and above[0] in framework_names() else None)
    parts = [*above, *map(str, first["loc"])]
    name = ".".join(parts)
    if first["type"] == "extra_forbidden":
        try:
            check_field(name)
        except UserError as unknown:
            return str(unknown)
        top, _, leaf = name.rpartition(".")
        return f"{name}: in a file, write it below its section, {top}: {{{leaf}: ...}}"
    while parts and ".".join(parts) not in known:
        parts.pop()
    name = ".".join(parts) or short(name)
    told = [first]
    for other in others:
        place = ".".join([*above, *map(str, other["loc"][:-1])])
        if place == name and other["input"] is first["input"]:
            told.append(other)
    message, *more = _most_telling(told)
    if first["type"] == "missing":
        message = "too few values: write two"
    if not name:
        return message
    message += "".join(f", or {one.removeprefix('Input should be ')}" for one in more)
    return f"{name}={shown(first['input'])}: {message[0].lower()}{message[1:]}"


def _most_telling(errors: Sequence[Any]) -> list[str]:
    """What each kind of value that a field takes has to say, if it is about values, not types."""
    own = [one for one in errors if one["type"] == "value_error"]
    of_values = [one for one in errors if not one["type"].endswith("_type")]
    return [str(one["msg"]).removeprefix("Value error, ") for one in own or of_values or errors]
