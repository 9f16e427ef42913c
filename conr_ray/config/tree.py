"""The whole tree of a run.

Building it refuses unknown fields and checks the cross-field rules, so every `RunConfig` can be
trained.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import (
    BaseModel,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from conr_ray.config.rules import broken_rules
from conr_ray.config.samples import OWN_SIDE, ViewsConfig
from conr_ray.config.sections import RunSections
from conr_ray.config.yaml_text import dump_yaml
from conr_ray.errors import UserError
from conr_ray.fields import Mark, Section, short
from conr_ray.method.backbone_names import is_timm
from conr_ray.method.frameworks import framework_config, framework_names


class RunConfig(RunSections):
    """Everything that decides what a run computes.

    Besides the sections below, a tree has that of its framework, under the framework's name.
    """

    # As written: only the framework's module knows its fields, and it imports torch, which reading
    # the config of a finished run must not need.
    _framework_tree: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @functools.cached_property
    def framework(self) -> Section:
        """The section of the framework.

        Raises:
            UserError: a value in it is invalid; raised on first access.
        """
        # It knows the names of all fields, which are those of this tree.
        from conr_ray.config.building import explained

        name = self.model.framework
        try:
            return framework_config(name).model_validate(self._framework_tree)
        except ValidationError as error:
            raise UserError(explained(error, name)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _with_framework(cls, tree: Any, handler: ModelWrapValidatorHandler[RunConfig]) -> RunConfig:
        """Store the framework's section unvalidated; refuse those of others."""
        if not isinstance(tree, Mapping):
            return handler(tree)
        own = {key: v for key, v in tree.items() if key not in framework_names()}
        config = handler(_sized(own))
        chosen = config.model.framework
        for name in tree.keys() & set(framework_names()):
            if name != chosen and tree[name]:
                raise ValueError(unchosen(f"{name}.{next(iter(tree[name]))}", name, chosen))
        config._framework_tree = dict(tree.get(chosen) or {})
        return config

    @model_validator(mode="after")
    def _check_rules(self) -> RunConfig:
        for problem in broken_rules(self):
            raise ValueError(problem)
        return self

    @model_serializer(mode="wrap")
    def _whole(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        tree = handler(self)
        mode = "json" if info.mode == "json" else "python"
        return {**tree, self.model.framework: self.framework.model_dump(mode=mode)}

    def written_tree(self) -> dict[str, Any]:
        """The tree as JSON values, the framework's section as it was written."""
        tree: dict[str, Any] = {"seed": self.seed}
        tree |= {name: getattr(self, name).model_dump(mode="json") for name in sections()}
        return {**tree, self.model.framework: dict(self._framework_tree)}

    def content_hash(self) -> str:
        """A hash that only equal configs share."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved tree as YAML that `from_yaml` reads back unchanged."""
        return dump_yaml(self.model_dump(mode="json"))

    def as_written(self) -> str:
        """`to_yaml` for a config read from its output; needs no torch."""
        return dump_yaml(self.written_tree())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RunConfig):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in type(self).model_fields))


def _sized(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the side of views for our own backbones, where none is set."""
    views, model = (tree.get(name, {}) for name in ("views", "model"))
    side, backbone = (
        section.get(leaf) if isinstance(section, Mapping) else getattr(section, leaf, None)
        for section, leaf in ((views, "size"), (model, "backbone"))
    )
    if side is not None or is_timm(str(backbone)):
        return tree
    if isinstance(views, Mapping):
        return {**tree, "views": {**views, "size": OWN_SIDE}}
    if isinstance(views, ViewsConfig):
        return {**tree, "views": views.model_copy(update={"size": OWN_SIDE})}
    return tree


for _name in RunConfig.model_fields.keys() & set(framework_names()):
    raise ImportError(f"frameworks/{_name}.py: every config has a section {_name}: rename the file")


def unchosen(field: str, owner: str, chosen: str) -> str:
    """The error message for a `field` of a framework that is not chosen."""
    return (
        f"{field}: model.framework={short(chosen)} does not use it: leave it out, or set "
        f"model.framework={owner}"
    )


@functools.cache
def sections() -> dict[str, type[Section]]:
    """The sections that every tree has, by name."""
    kinds = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {n: k for n, k in kinds.items() if isinstance(k, type) and issubclass(k, BaseModel)}  # type: ignore[misc]


def section_of(name: str) -> type[Section] | None:
    """The section called `name`, of the tree or of a framework; None if there is none."""
    if name in framework_names():
        return framework_config(name)
    return sections().get(name)


def marked_fields() -> Iterator[tuple[str, Mark]]:
    """Every field of the sections that all trees have, with its mark."""
    for name, section in sections().items():
        for leaf in section.model_fields:
            yield f"{name}.{leaf}", section.mark_of(leaf)


def mark_of(field: str) -> Mark:
    """The mark of a dotted field, which must exist."""
    name, _, leaf = field.rpartition(".")
    section = section_of(name)
    return Mark() if section is None else section.mark_of(leaf)
