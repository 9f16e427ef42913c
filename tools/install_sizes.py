"""What installing takes: packages and megabytes of the core, of each extra, and of each dependency.

python tools/install_sizes.py

Sizes are those of the files that are installed in this environment, without compiled bytecode;
`make lint`'s environment has all extras. A dependency's own share is what would not be installed
without it. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from dependency_audit import needed
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def installed(requirements: Iterable[str]) -> set[str]:
    """All distributions that requirements need, and that are installed here."""
    names = set()
    for name in needed(map(Requirement, requirements)):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        names.add(name)
    return names


@functools.cache
def size_mb(name: str) -> float:
    """Size of a distribution's files."""
    files = metadata.files(name) or []
    paths = (Path(str(file.locate())) for file in files if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def row(title: str, names: Iterable[str]) -> str:
    """A line of the table."""
    kept = sorted(names, key=size_mb, reverse=True)
    largest = ", ".join(f"{name} {size_mb(name):,.0f}" for name in kept[:3])
    return f"| {title} | {len(kept)} | {sum(map(size_mb, kept)):,.0f} | {largest} |"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, extras = project["dependencies"], project["optional-dependencies"]
    base = installed(core)
    of_gpus = {name for name in base if name.startswith(("nvidia-", "cuda-", "triton"))}
    of_torch = installed(["torch"])
    print("| what | packages | MB | largest |", "| --- | --- | --- | --- |", sep="\n")
    print(row("core", base))
    print(row("of it CUDA's, which torch for CPUs is without", of_gpus))
    print(row("core where torch is there already", base - of_torch))
    for extra, requirements in extras.items():
        print(row(f"{extra}, beyond the core", installed([*core, *requirements]) - base))
    for requirement in core:
        others = [one for one in core if one != requirement]
        print(row(f"{requirement} alone", base - installed(others)))
