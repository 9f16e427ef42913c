"""Read configs from files, presets and command-line words."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from conr_ray.config.building import build
from conr_ray.config.names import check_field
from conr_ray.config.sections import ModelConfig
from conr_ray.config.tree import RunConfig
from conr_ray.errors import UserError
from conr_ray.method.frameworks import framework_names


def parse_yaml(text: str, source: str) -> Any:
    """The tree in `text`; if it is not YAML, raises UserError that names `source`."""
    try:
        return yaml.safe_load(text)
    # A date that does not exist is a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path, option: str, remedy: str) -> Any:
    """The tree in the file `path`, the value of `option`; errors end with `remedy`."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{option} {path}: {reason}; {remedy}") from None
    return parse_yaml(text, f"{option} {path}")


def from_yaml(
    text: str, source: str, overrides: Mapping[str, Any] | None = None, *, trusted: bool = False
) -> RunConfig:
    """The config written in `text`; `source` names it in errors, `trusted` is as in `build`."""
    return build(parse_yaml(text, source) or {}, overrides, trusted=trusted)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config in the file `path`, with dotted overrides on top."""
    return build(read_yaml(path, "--config", "name a config.yaml") or {}, overrides)


@functools.cache
def preset_names() -> list[str]:
    """Names that `load_preset` accepts."""
    files = resources.files("conr_ray").joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The preset called `name`, with dotted overrides on top.

    Raises UserError for an unknown preset, field or value.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(preset_names())}"
        raise UserError(f"preset {name}: no such preset; {hint}")
    tree, overrides = _preset(name), overrides or {}
    default = ModelConfig.default_of("framework")
    chosen = overrides.get("model.framework", tree.get("model", {}).get("framework", default))
    others = [name for name in framework_names() if name != chosen]
    own = {section: fields for section, fields in tree.items() if section not in others}
    return build(own, overrides, trusted=True)


# A search builds a config for each point that it considers.
@functools.cache
def _preset(name: str) -> Mapping[str, Any]:
    text = resources.files("conr_ray").joinpath("presets", f"{name}.yaml").read_text()
    tree: Mapping[str, Any] = parse_yaml(text, f"preset {name}")
    return tree


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Dotted overrides from `field=value` words; values are YAML."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write field=value, for example optim.lr=0.1")
        check_field(name)
        try:
            overrides[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--set {setting}: the value is not YAML; quote it") from None
        # YAML 1.1 reads 1e-3, which has no dot, as a string.
        if isinstance(overrides[name], str):
            try:
                number = float(text)
            except ValueError:
                continue
            if math.isfinite(number):
                overrides[name] = number
    return overrides
