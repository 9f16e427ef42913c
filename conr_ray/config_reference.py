"""`python -m conr_ray.config_reference` prints docs/config.md: the fields of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from conr_ray.command_line import run_command
from conr_ray.config import RunConfig, load_preset, preset_names, sections
from conr_ray.method.frameworks import framework_config, framework_names

_HEAD = """\
# Fields of a run

A run is a tree of sections. The defaults are the paper's recipe for CIFAR-10; the last column names
the presets with another value. Set a field with `--set section.field=value`, in the YAML file of
`--config`, or in a search space under `fixed` or `search`. The last sections are those of the
frameworks: a run has the one that `model.framework` names.

This page is the output of `python -m conr_ray.config_reference`.
"""
_COLUMNS = "| field | values | default | meaning | presets |\n| --- | --- | --- | --- | --- |"


def reference() -> str:
    """The page as Markdown: a table for each section, a row for each field."""
    presets = {name: load_preset(name).model_dump(mode="json") for name in preset_names()}
    top = RunConfig.model_json_schema()["properties"].items()
    lines = [_HEAD, _COLUMNS]
    lines += [_row(name, name, field, presets) for name, field in top if "$ref" not in field]
    frameworks = {name: framework_config(name) for name in framework_names()}
    for section, kind in {**sections(), **frameworks}.items():
        schema = kind.model_json_schema()
        trees = {preset: tree[section] for preset, tree in presets.items() if section in tree}
        lines += [f"\n## {section}\n\n{schema['description']}\n", _COLUMNS]
        lines += [
            _row(f"{section}.{leaf}", leaf, field, trees)
            for leaf, field in schema["properties"].items()
        ]
    return "\n".join(lines) + "\n"


def _row(name: str, leaf: str, schema: Mapping[str, Any], trees: Mapping[str, Any]) -> str:
    default = schema["default"]
    changed = ", ".join(preset for preset, tree in trees.items() if tree[leaf] != default)
    meaning = schema.get("description", "")
    return f"| `{name}` | {_values(schema)} | `{_yaml(default)}` | {meaning} | {changed} |"


def _values(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_values(member) for member in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "prefixItems" in schema:
        return f"two ({_values(schema['prefixItems'][0])})"
    if "items" in schema:
        return f"list ({_values(schema['items'])})"
    words = {"null": "`null`", "boolean": "`true`, `false`"}
    return f"{words.get(schema['type'], schema['type'])}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number: both, only a lower one, or none."""
    low = _bound(schema, "minimum", "exclusiveMinimum")
    high = _bound(schema, "maximum", "exclusiveMaximum")
    if low is None:
        return ""
    if high is None:
        return f" ≥ {low}" if "minimum" in schema else f" > {low}"
    start, end = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
    return f" in {start}{low}, {high}{end}"


def _bound(schema: Mapping[str, Any], *names: str) -> float | None:
    """A bound; some versions of pydantic make whole numbers floats."""
    found = next((schema[name] for name in names if name in schema), None)
    return int(found) if isinstance(found, float) and found.is_integer() else found


def _yaml(value: Any) -> str:
    """`value` as YAML, floats to 4 significant digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(yaml.safe_dump(value)).split("\n")[0]


if __name__ == "__main__":
    run_command(lambda _: print(reference(), end=""))
