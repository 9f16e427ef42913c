"""Self-supervised frameworks: one file each, found by its name.

To add one, write a file here with a `Config` (its section of a run's config) and a `Framework`
(its networks and loss); see `base`. `model.framework` then accepts the file's name.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from conr_ray.fields import Section

if TYPE_CHECKING:
    from conr_ray.method.frameworks.base import Framework


@functools.cache
def framework_names() -> tuple[str, ...]:
    """The values of `model.framework`; imports no framework."""
    found = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    return tuple(sorted(found))


def framework_config(name: str) -> type[Section]:
    """The config section of the framework `name`; imports torch."""
    config: type[Section] = _module(name).Config
    return config


def framework_class(name: str) -> type[Framework[Any]]:
    """The networks and loss of the framework `name`."""
    found: type[Framework[Any]] = _module(name).Framework
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
