"""Self-supervised frameworks: one file each, found by its name.

To add one, write a file here with a `Config` (its section of a run's config) and a `Framework`
(its networks and loss); see `base`. `model.framework` then accepts the file's name.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from conr_ray.errors import UserError
from conr_ray.fields import Section
from conr_ray.plugins import FRAMEWORKS, loaded, plugins

# Frameworks that learn no embeddings, in which a batch would be searched, but clusters alone:
# their neighbours come from all data. Here, since importing a framework takes a second.
OF_ALL_DATA = ("heads",)
# Frameworks whose own loss takes both views for ones of the same sample.
OF_BATCHES = ("propos",)

if TYPE_CHECKING:
    from conr_ray.method.frameworks.base import Framework


@functools.cache
def framework_names() -> tuple[str, ...]:
    """The values of `model.framework`, with those of other packages; imports none.

    Files whose name begins with _ are left out.
    """
    own = _own_names()
    return tuple(sorted({*own, *plugins(FRAMEWORKS, own)}))


def _own_names() -> frozenset[str]:
    found = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    return frozenset(name for name in found if not name.startswith("_"))


def framework_config(name: str) -> type[Section]:
    """The config section of the framework `name`; imports torch."""
    config: type[Section] = _module(name).Config
    return config


def framework_class(name: str) -> type[Framework[Any]]:
    """The networks and loss of the framework `name`."""
    found: type[Framework[Any]] = _module(name).Framework
    return found


def _module(name: str) -> Any:
    file = f"conr_ray/method/frameworks/{name}.py"
    try:
        if (point := plugins(FRAMEWORKS, _own_names()).get(name)) is None:
            module = importlib.import_module(f"{__name__}.{name}")
        else:
            file = point.value
            module = loaded(FRAMEWORKS, point)
        _ = module.Config, module.Framework
    except Exception as error:
        raise UserError(f"{file} is not a framework: {type(error).__name__}: {error}") from error
    return module
