"""The files of presets: their names, and what each is for; reads no YAML, imports no library."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def preset_names() -> list[str]:
    """Names that `load_preset` accepts."""
    files = resources.files("conr_ray").joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The file of a preset, which must exist."""
    return resources.files("conr_ray").joinpath("presets", f"{name}.yaml").read_text()


def preset_summaries() -> dict[str, str]:
    """What each preset is for, by name: the first sentence of its file's comment."""
    return {name: _summary(preset_text(name)) for name in preset_names()}


def _summary(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].removesuffix(".")
