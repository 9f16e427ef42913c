"""What other packages add: frameworks and backbones that they declare as entry points.

A package names them in its own metadata:

    [project.entry-points."conr_ray.frameworks"]
    mine = "my_package.mine"            # a module with Config and Framework

    [project.entry-points."conr_ray.backbones"]
    tiny = "my_package.networks:tiny"   # (shape, stem, widths) -> module with out_features

    [project.entry-points."conr_ray.sources"]
    zipped = "my_package.data:Zipped"   # a class of conr_ray.data.sources.base.Source

Names are read from metadata; a package is imported when one of its names is used.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from conr_ray.errors import UserError

FRAMEWORKS, BACKBONES, SOURCES = "frameworks", "backbones", "sources"


@functools.cache
def plugins(group: str, taken: Collection[str] = ()) -> dict[str, EntryPoint]:
    """The entry points `conr_ray.<group>`, by name.

    Raises:
        UserError: two packages have the same name for one, or it is one of `taken`.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=f"conr_ray.{group}"), key=lambda p: (p.name, p.value)):
        known = found.get(point.name)
        if known is not None and known.value == point.value:
            continue
        if known is not None or point.name in taken or not point.name.isidentifier():
            owner = "conr_ray's own" if known is None else f"that of {_owner(known)}"
            what = f"the name is {owner}"
            if not point.name.isidentifier():
                what = "a name has letters, digits and _ only"
            raise UserError(f"{_owner(point)}: {group} {point.name}: {what}: rename or remove it")
        found[point.name] = point
    return found


def loaded(group: str, point: EntryPoint) -> Any:
    """The object that an entry point names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:
        raise UserError(
            f"{_owner(point)}: {group} {point.name}={point.value} cannot be imported "
            f"({type(error).__name__}: {error}): mend or remove the package"
        ) from error


def _owner(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist is not None else "an installed package"
