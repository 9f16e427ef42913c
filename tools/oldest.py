"""The oldest supported version of each dependency, as constraints: `python tools/oldest.py`.

They are the lower bounds of pyproject.toml, those of the extras too, with the newest corrections of
each: `>=2.10` is `==2.10.*`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def oldest(pyproject: str) -> list[str]:
    """A line `name==version.*` for each requirement with a lower bound, the highest of several."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"].values()
    bounds: dict[str, Version] = {}
    for line in [*project["dependencies"], *(line for lines in extras for line in lines)]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        for bound in requirement.specifier:
            if bound.operator == ">=":
                version = Version(bound.version)
                bounds[name] = max(version, bounds.get(name, version))
    return [f"{name}=={version}.*" for name, version in sorted(bounds.items())]


if __name__ == "__main__":
    print(*oldest((ROOT / "pyproject.toml").read_text()), sep="\n")
