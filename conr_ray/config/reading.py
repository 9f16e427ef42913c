"""Read configs from files, presets and command-line words."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conr_ray.config.building import build
from conr_ray.config.declared import is_text, kind_of, typed, typed_tree
from conr_ray.config.names import check_field
from conr_ray.config.networks import ModelConfig
from conr_ray.config.tree import RunConfig
from conr_ray.config.yaml_text import NotYaml, Word, parse_yaml, read_yaml
from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.method.frameworks import framework_names
from conr_ray.preset_files import preset_names, preset_text


def from_yaml(
    text: str, source: str, overrides: Mapping[str, Any] | None = None, *, trusted: bool = False
) -> RunConfig:
    """The config written in `text`; `source` names it in errors, `trusted` is as in `build`."""
    return build(parse_yaml(text, source), overrides, trusted=trusted)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config in the file `path`, with dotted overrides on top."""
    return build(read_yaml(path, "--config", "name a config.yaml"), overrides)


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config of a preset.

    Args:
        name: of the preset; `preset_names` lists them.
        overrides: values by dotted field, such as `schedule.epochs`, which replace the preset's.

    Raises:
        UserError: there is no such preset or field, or a value or two that do not fit together.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(preset_names())}"
        raise UserError(f"preset {short(name)}: no such preset; {hint}")
    tree, overrides = _preset(name), overrides or {}
    default = ModelConfig.default_of("framework")
    chosen = overrides.get("model.framework", tree.get("model", {}).get("framework", default))
    others = [name for name in framework_names() if name != chosen]
    own = {section: fields for section, fields in tree.items() if section not in others}
    return build(own, overrides, trusted=True)


# A search builds a config for each point that it considers.
@functools.cache
def _preset(name: str) -> Mapping[str, Any]:
    return typed_tree(parse_yaml(preset_text(name), f"preset {name}"), trusted=True)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Dotted overrides from `field=value` words, each read as its field declares.

    The value of a field of text is taken as it is, unless it is quoted or null; others are YAML.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {short(setting)}: write field=value, for example optim.lr=0.1")
        check_field(name)
        text = text.strip()
        value: Any = Word(text)
        if text and (text[0] in "\"'" or not is_text(name)):
            told = f"--set {short(setting)}"
            try:
                value = parse_yaml(text, told, empty=True)
            except NotYaml:
                raise UserError(f"{told}: the value is not YAML; quote it") from None
        overrides[name] = typed(value, kind_of(name))
    return overrides
