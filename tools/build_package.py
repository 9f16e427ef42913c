"""Build wheel and source distribution, and check what is in them: `python tools/build_package.py`.

They are written to dist/, which is emptied first. The source distribution is made of the tree, and
the wheel of the source distribution, so that what is missing there is missing at once. It needs
setuptools and no network; `python -m build` makes the same files.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
# The wheel holds the package and nothing else; all that is tracked in it, but nothing compiled.
_PACKAGE = "conr_ray"


def build(root: Path, into: Path) -> list[Path]:
    """The source distribution and the wheel of the project in `root`, checked.

    Raises:
        SystemExit: they cannot be built, or lack files.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    _run([sys.executable, "-c", _SDIST, str(into.absolute())], root)
    (sdist,) = into.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        (unpacked,) = Path(scratch).iterdir()
        offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
        _run([*pip, *offline, "--wheel-dir", str(into.absolute()), "."], unpacked)
    (wheel,) = into.glob("*.whl")
    faults = missing(root, wheel)
    if faults:
        sys.exit("\n".join(faults))
    return [sdist, wheel]


def missing(root: Path, wheel: Path) -> list[str]:
    """A line for each tracked file of the package that a wheel lacks, or that it has beyond."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--", _PACKAGE], capture_output=True, check=True
    )
    tracked = {name for name in listed.stdout.decode().split("\0") if (root / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    lines = [f"{wheel.name} lacks {name}: add it to package-data" for name in tracked - names]
    return sorted(lines + [f"{wheel.name} holds {name}, untracked" for name in names - tracked])


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[:3]} fails in {folder}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for file in build(ROOT, ROOT / "dist"):
        print(f"dist/{file.name}  {file.stat().st_size / 1e6:.2f} MB")
